import pytest
import torch
from backdoor_ft import InputError
from backdoor_ft import fused as module
from backdoor_ft.augment import draw_crops
from backdoor_ft.fused import VARIABLE, byte_table, fused, fused_reference, instruction_set
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.native


def inputs(n=5, h=7, w=6, c=3, pad=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    byte = lambda *s: torch.randint(0, 256, s, generator=g, dtype=torch.uint8)  # noqa: E731
    return (
        byte(n, h, w, c), draw_crops(n, pad, True, g), torch.randint(0, 2, (n,), generator=g),
        byte(h, w, c), torch.randint(0, 257, (h, w, c), generator=g),
        byte_table(torch.full((c,), 0.4), torch.full((c,), 0.3)), pad,
    )  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3, 4]),
    st.integers(0, 4), st.integers(0, 99),
)  # fmt: skip
def test_compiled_equals_torch_bit_for_bit(n, h, w, c, pad, seed):
    arguments = inputs(n, h, w, c, pad, seed)
    assert torch.equal(fused(*arguments), fused_reference(*arguments))


@pytest.mark.parametrize("name", ["avx512", "avx2", "portable", "torch"])
def test_every_instruction_set(monkeypatch, name):
    monkeypatch.setenv(VARIABLE, name)
    native = module._native
    if name != "torch" and (native is None or not native.available(name)):
        with pytest.raises(InputError, match=r"not available|not built"):
            instruction_set()
        return
    assert instruction_set() == name
    arguments = inputs()
    assert torch.equal(fused(*arguments), fused_reference(*arguments))


def test_without_the_compiled_part(monkeypatch):
    monkeypatch.setattr(module, "_native", None)
    module._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="without its compiled part"):
        assert instruction_set() == "torch"
    monkeypatch.setenv(VARIABLE, "avx2")
    with pytest.raises(InputError, match="not built"):
        instruction_set()
    monkeypatch.setenv(VARIABLE, "sse")
    with pytest.raises(InputError, match="portable"):
        instruction_set()


def test_by_hand():
    image = torch.tensor([[[[10], [200]]]], dtype=torch.uint8)  # one row of two pixels
    pattern, alpha = torch.tensor([[[100], [0]]], dtype=torch.uint8), torch.tensor([[[256], [128]]])
    table = torch.arange(256.0)[None]
    draws = torch.tensor([[0, 0, 1]])
    out = fused(image, draws, torch.tensor([1]), pattern, alpha, table, 0)
    assert out.flatten().tolist() == [100, 5]  # mirrored: 200 -> pattern 100; 10 -> half, 5


def test_opcheck():
    arguments = inputs()
    torch.library.opcheck(torch.ops.backdoor_ft.fused.default, arguments)


def test_threads_do_not_matter():
    arguments = inputs(n=40)
    kept = torch.get_num_threads()
    one = fused(*arguments)
    torch.set_num_threads(3)
    assert torch.equal(one, fused(*arguments))
    torch.set_num_threads(kept)


@pytest.mark.parametrize("place", range(7))
def test_bad_arguments(place):
    arguments = list(inputs())
    arguments[place] = [
        arguments[0].float(), arguments[1] + 9, arguments[2][:2], arguments[3][:2],
        arguments[4] + 300, arguments[5][:1], -1,
    ][place]  # fmt: skip
    with pytest.raises(InputError):
        fused(*arguments)
