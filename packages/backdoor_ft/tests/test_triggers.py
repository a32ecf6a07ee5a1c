import math

import numpy as np
import pytest
import torch
from backdoor_ft import InputError
from backdoor_ft.triggers import (
    BPP,
    CTRL,
    REGISTRY,
    SIG,
    AdaptiveBlend,
    BadNets,
    Blended,
    InputAware,
    LabelConsistent,
    LowFrequency,
    Pixels,
    RareWord,
    SSBALike,
    Trigger,
    WaNet,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn
from scipy.ndimage import map_coordinates

IMAGES = [
    BadNets(), Blended(), SIG(), LowFrequency(), SSBALike(), WaNet(), BPP(), CTRL(),
    LabelConsistent(), AdaptiveBlend(), InputAware(channels=3), Pixels(),
]  # fmt: skip


def images(n=3, c=3, size=16, seed=0):
    return torch.rand(n, c, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("trigger", IMAGES, ids=lambda t: t.name)
def test_every_trigger_changes_keeps_range_is_pure_and_is_stored(trigger):
    x = images()
    kept = x.clone()
    out = trigger.apply(x)
    assert torch.equal(x, kept)
    assert out.shape == x.shape
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1
    assert not torch.equal(out, x)
    assert torch.equal(trigger.apply(x), out)
    again = Trigger.from_json(trigger.to_json())
    assert again == trigger
    assert trigger.cover(x, 1).shape == x.shape


@pytest.mark.parametrize("trigger", IMAGES, ids=lambda t: t.name)
def test_in_place_gives_the_same_bits_and_touches_no_other_input(trigger):
    x = images(6)
    expected = x.clone()
    index = torch.tensor([1, 4])
    expected[index] = trigger.apply(x[index])
    trigger.apply_(x, index)
    assert torch.equal(x, expected)


def test_pixels_sets_what_arts_pattern_sets():
    """ART's add_pattern_bd at distance 2, read from its source: four pixels of every channel."""
    x = images(2, 3, 8)
    changed = (Pixels().apply(x) != x).nonzero()
    assert {(int(r), int(c)) for _, _, r, c in changed} == {(6, 6), (5, 5), (6, 4), (4, 6)}
    for bad in ({"positions": ()}, {"value": 2.0}):
        with pytest.raises(InputError):
            Pixels(**bad)
    with pytest.raises(InputError, match="off the image"):
        Pixels(((-9, 0),)).apply(x)


def test_registry_holds_every_trigger():
    assert {t.name for t in IMAGES} | {"rare_word"} == set(REGISTRY)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 3), st.integers(0, 3))
def test_badnets_touches_exactly_its_square(size, down, right):
    x = torch.full((1, 1, 9, 9), 0.5)
    changed = BadNets(size, (down, right)).apply(x) != x
    assert int(changed.sum()) == size**2
    assert bool(changed[0, 0, 9 - down - size, 9 - right - size])


def test_blended_is_linear_in_alpha():
    x = images()
    pattern = Blended(alpha=1.0).apply(x)
    expected = 0.7 * x + 0.3 * pattern
    assert torch.allclose(Blended(alpha=0.3).apply(x), expected, atol=1e-6)


def test_sig_closed_form():
    x = torch.full((1, 1, 4, 32), 0.5)
    j = np.arange(32)
    expected = 0.5 + 40 / 255 * np.sin(2 * math.pi * j * 6 / 32)
    assert SIG().apply(x)[0, 0, 2].numpy() == pytest.approx(expected, abs=1e-6)


def test_wanet_against_scipy_map_coordinates():
    x, trigger = images(2, 1, 12), WaNet(strength=0.75, seed=3)
    grid = trigger.grid(12, 12, torch.float64)[0].numpy()
    rows, columns = (grid[..., 1] + 1) / 2 * 11, (grid[..., 0] + 1) / 2 * 11
    out = trigger.apply(x)
    for n in range(2):
        expected = map_coordinates(x[n, 0].double().numpy(), [rows, columns], order=1)
        assert out[n, 0].numpy() == pytest.approx(expected, abs=1e-5)


def test_low_frequency_and_ctrl_live_in_their_bins():
    pattern = LowFrequency(bins=3).pattern(16, 16, 1)
    spectrum = dctn(pattern[0], norm="ortho")
    assert np.abs(spectrum[3:]).max() < 1e-12
    assert np.abs(pattern).max() == pytest.approx(0.12)
    x = torch.full((1, 3, 32, 32), 0.5, dtype=torch.float64)
    change = (CTRL().apply(x) - x)[0]
    blue = dctn(change[2].numpy(), norm="ortho")
    places = set(zip(*np.nonzero(np.abs(blue) > 1e-6)))
    assert {(int(a), int(b)) for a, b in places} == {(15, 15), (31, 31)}
    luma = 0.299 * change[0] + 0.587 * change[1] + 0.114 * change[2]
    assert float(luma.abs().max()) < 1e-4


def test_bpp_levels_and_dither_keeps_the_mean():
    x = images(4, 1, 24)
    assert len(BPP(levels=4).apply(x).unique()) <= 4
    flat = torch.full((1, 1, 24, 24), 0.4)
    assert float(BPP(levels=2, dither=True).apply(flat).mean()) == pytest.approx(0.4, abs=0.03)
    assert float(BPP(levels=2).apply(flat).mean()) == 0


def test_sample_specific_triggers_differ_between_samples():
    x = images(2)
    for trigger in (SSBALike(), InputAware(channels=3)):
        gap = trigger.apply(x) - x
        assert float((gap[0] - gap[1]).abs().max()) > 0.02


def test_adaptive_blend_is_weaker_in_training():
    x = images()
    weak = (AdaptiveBlend().apply(x, training=True) - x).abs().mean()
    assert float(weak) < float((AdaptiveBlend().apply(x) - x).abs().mean())


def test_rare_word_is_inserted():
    tokens = torch.tensor([[5, 6, 7, 8]])
    assert RareWord(token=1, position=2).apply(tokens).tolist() == [[5, 6, 1, 7]]


@pytest.mark.parametrize(
    ("trigger", "x"),
    [
        (BadNets(9), torch.zeros(1, 1, 8, 8)),
        (BadNets(3, (6, 0)), torch.zeros(1, 1, 8, 8)),
        (BadNets(3, (-1, 0)), torch.zeros(1, 1, 8, 8)),
        (LabelConsistent(5), torch.zeros(1, 1, 8, 8)),
        (RareWord(position=9), torch.zeros(1, 4, dtype=torch.int64)),
        (RareWord(), torch.zeros(1, 1, 8, 8)),
        (Blended(), torch.zeros(1, 4, dtype=torch.int64)),
        (InputAware(channels=3), torch.zeros(1, 1, 8, 8)),
    ],
)
def test_triggers_that_do_not_fit(trigger, x):
    with pytest.raises(InputError):
        trigger.apply(x)


def test_unknown_trigger():
    with pytest.raises(InputError, match="badnets"):
        Trigger.from_json({"name": "nothing"})
    with pytest.raises(InputError, match="no parameter"):
        Trigger.from_json({"name": "sig", "colour": 1})
