"""Philox against the vectors its authors published."""

from __future__ import annotations

import numpy as np
import pytest
from perfeds2 import rng


@pytest.mark.native
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_random123_known_answers(counter, key, words):
    found = rng.philox(*(np.uint64(v) for v in counter + key))
    assert " ".join(f"{int(v):08x}" for v in found) == words


def test_draws_depend_on_ue_purpose_counter_and_seed_only():
    base = rng.uniforms(1, np.arange(6), rng.FADING, 3, 4)
    assert (rng.uniforms(1, np.array([4, 2]), rng.FADING, 3, 4) == base[[4, 2]]).all()
    for other in (
        rng.uniforms(2, np.arange(6), rng.FADING, 3, 4),
        rng.uniforms(1, np.arange(6), rng.COMPUTE, 3, 4),
        rng.uniforms(1, np.arange(6), rng.FADING, 4, 4),
    ):
        assert not np.isclose(other, base).any()


def test_uniform_moments_and_range():
    u = rng.uniforms(0, np.arange(100), rng.FADING, 0, 1000).ravel()
    assert u.min() > 0
    assert u.max() < 1
    assert u.mean() == pytest.approx(0.5, abs=5e-3)
    assert u.var() == pytest.approx(1 / 12, abs=2e-3)


def test_choices_cover_the_range_and_never_leave_it():
    sizes = np.array([1, 2, 7])
    drawn = rng.choices(0, np.arange(3), rng.INNER, np.zeros(3, int), sizes, 400)
    for row, size in zip(drawn, sizes):
        assert set(row.tolist()) == set(range(size))
