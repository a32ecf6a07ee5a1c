"""The compiled CIDEr-D against the Python one, which is checked against pycocoevalcap."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from p2c import InputError, native
from p2c.metrics import CiderD, cider

needs_compiled = pytest.mark.skipif(native._compiled is None, reason="p2c was not compiled")

words = st.sampled_from(["a", "b", "zebra", "bus", "é", "東京", "1", "\u2003"])
caption = st.lists(words, max_size=12).map(" ".join)
image = st.lists(caption, min_size=1, max_size=4)


@pytest.fixture
def off(monkeypatch):
    """Return a scorer without the compiled part."""

    def make(*arguments, **more):
        monkeypatch.setenv(native.VARIABLE, "off")
        made = CiderD(*arguments, **more)
        monkeypatch.setenv(native.VARIABLE, "on")
        return made

    return make


@pytest.mark.native
@needs_compiled
@settings(max_examples=60, deadline=None)
@given(st.lists(image, min_size=1, max_size=5), st.lists(caption, min_size=1, max_size=5))
def test_equals_python_on_any_captions(images, captions):
    references = dict(enumerate(images))
    keys = [k % len(images) for k in range(len(captions))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.VARIABLE, "off")
        want = CiderD(references).scores(keys, captions)
        patch.setenv(native.VARIABLE, "on")
        got = CiderD(references).scores(keys, captions)
    np.testing.assert_allclose(got, want, atol=1e-12, rtol=0)


@pytest.mark.native
@needs_compiled
def test_equals_pycocoevalcaps_numbers(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "on")
    refs = [["a zebra stands next to a bus", "a zebra near a bus"],
            ["a pizza on a couch", "there is a pizza on the couch"],
            ["a man riding a horse", "man on horse"]]  # fmt: skip
    hyps = ["a zebra standing next to a bus", "a pizza on the couch", "a horse riding a man"]
    assert cider(refs, hyps)[1] == pytest.approx(
        [3.7391804649, 5.7147975589, 3.1216780289], abs=1e-9
    )


@pytest.mark.native
@needs_compiled
def test_numbers_frequencies_and_long_captions(off):
    refs = {"x": [[5, 6, 7, 3], [5, 7]], "y": [[8] * 500]}
    frequencies = {(5,): 4, (5, 6): 2, (8, 8, 8, 8): 9}
    both = [make(refs, frequencies, 20) for make in (CiderD, off)]
    for key, line in (("x", [5, 6, 7, 3]), ("y", [8] * 600), ("y", []), ("x", [2**40, 5])):
        assert both[0].score(key, line) == pytest.approx(both[1].score(key, line), abs=1e-12)


@pytest.mark.native
@needs_compiled
def test_words_and_their_numbers_are_different_words():
    scorer = CiderD({0: ["1 2 3"], 1: ["x y"]})
    assert scorer.score(0, "1 2 3") > 5
    assert scorer.score(0, [1, 2, 3]) == 0


@pytest.mark.native
@needs_compiled
def test_bad_calls_are_refused():
    made = native._compiled.CiderD({}, 1.0, 6.0)
    number = made.add(["a b"])
    with pytest.raises(IndexError):
        made.score(number + 1, "a")
    with pytest.raises(ValueError, match="fewer than images"):
        made.scores([number, number], ["a"])
    with pytest.raises(ValueError, match="1 to 4 words"):
        native._compiled.CiderD({("a",) * 5: 1}, 1.0, 6.0)


def test_without_the_compiled_part_it_says_so_once():
    code = (
        "import warnings; warnings.simplefilter('always')\n"
        "from p2c import native; native._compiled = None\n"
        "from p2c.metrics import CiderD\n"
        "for _ in range(3): s = CiderD({0: ['a b'], 1: ['c']})\n"
        "print(round(s.score(0, 'a b'), 6))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("runs without its compiled part") == 1
    assert done.stdout.strip() == "5.0"  # orders 1 and 2 of 4 match wholly


def test_the_variable_is_checked(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "perhaps")
    with pytest.raises(InputError, match="P2C_NATIVE = 'perhaps'"):
        CiderD({0: ["a"]})
    monkeypatch.setenv(native.VARIABLE, "on")
    monkeypatch.setattr(native, "_compiled", None)
    with pytest.raises(InputError, match="needs the compiled part"):
        CiderD({0: ["a"]})
