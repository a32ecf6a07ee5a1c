import csv
import json

import numpy as np
import pytest
from noiser import InputError, cli, enhance
from noiser.comparison import BASELINES, COLUMNS, compare_one, operators
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio


def run(*arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main([str(a) for a in arguments])
    return caught.value.code


@pytest.fixture
def folders(tmp_path, photograph):
    for name in ("dark", "good"):
        (tmp_path / name).mkdir()
    for i in (0, 1):
        good = np.roll(photograph, 7 * i, axis=1)
        Image.fromarray(good // 4).save(tmp_path / "dark" / f"{i}.png")
        Image.fromarray(good).save(tmp_path / "good" / f"{i}.png")
    return tmp_path


def test_figures_are_those_of_the_methods(folders, photograph, capsys):
    table = folders / "t.csv"
    code = run(
        "compare", folders / "dark", "-o", folders / "c.html", "--reference", folders / "good",
        "--methods", "plus,gamma,identity", "--table", table, "--json",
    )  # fmt: skip
    assert code == 0
    means = json.loads(capsys.readouterr().out)
    assert list(means) == ["plus", "gamma", "identity"]
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 6
    lit = enhance(photograph // 4, "plus")
    theirs = peak_signal_noise_ratio(photograph, lit)  # scikit-image's
    ours = next(float(r["psnr"]) for r in rows if r["image"] == "0.png" and r["method"] == "plus")
    assert ours == pytest.approx(theirs, abs=1e-9)
    page = (folders / "c.html").read_text()
    assert page.count("<figure>") == 8
    assert "http" not in page


def test_every_method_runs_without_a_reference(photograph):
    names = ["plus", "paper", "closed_form", "auto", *BASELINES]
    found = compare_one("a", photograph[:48, :48] // 4, operators(names))
    assert list(found.results) == names
    for row in found.figures.values():
        assert tuple(row) == COLUMNS
        assert row["psnr"] is None
        assert row["niqe"] is None  # too small
    assert found.figures["identity"]["lightness_order_error"] == 0
    assert all(r.dtype == np.uint8 for r in found.results.values())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--methods", "magic"], "methods='magic'"),
        (["--methods", ","], "methods=[]"),
        (["--reference", "nowhere"], "nowhere"),
    ],
)
def test_bad_arguments_get_one_line(folders, capsys, arguments, word):
    assert run("compare", folders / "dark", "-o", folders / "c.html", *arguments) == 2
    error = capsys.readouterr().err
    assert word in error
    assert error.count("\n") == 1
    assert not (folders / "c.html").exists()


def test_references_must_fit(folders, photograph, capsys):
    (folders / "good" / "1.png").unlink()
    again = ["compare", folders / "dark", "-o", folders / "c.html", "--reference", folders / "good"]
    assert run(*again) == 2
    assert "no file named 1" in capsys.readouterr().err
    Image.fromarray(photograph[:9]).save(folders / "good" / "1.png")
    assert run(*again) == 2
    assert "has the shape" in capsys.readouterr().err


def test_unknown_names_list_the_known_ones():
    with pytest.raises(InputError, match="histogram_equalisation"):
        operators(["nothing"])
