"""Oracles: a plain transcription of gen_mask.py, and the definition of the cumulative sum."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from vitcod import (
    AttentionStats,
    InputError,
    Maskability,
    SparsityPlan,
    collect_attention,
    diagnose,
    information_mask,
    prune,
)
from vitcod.diagnose import output_error, retained_mass
from vitcod.layout import tile_slots
from vitcod.pruning import morton, row_order


def transcription(row, theta, official):
    """Walk down the sorted row until theta is reached, as the authors' loop does."""
    order = sorted(range(len(row)), key=lambda j: (-row[j], j))
    total, kept = 0.0, []
    for j in order:
        if total >= theta and kept:
            break
        kept.append(j)
        total += row[j]
    if official and len(kept) < len(row):
        kept.append(order[len(kept)])
    mask = np.zeros(len(row), bool)
    mask[kept] = True
    return mask


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.floats(0, 0.99), st.booleans(), st.sampled_from([0.05, 1.0, 20.0]))
def test_information_mask_is_the_transcription(seed, theta, official, peak):
    maps = np.random.default_rng(seed).dirichlet(np.full(12, peak), (2, 5))
    mask = information_mask(maps, theta, official)
    for h in range(2):
        for i in range(5):
            assert np.array_equal(mask[h, i], transcription(maps[h, i], theta, official))


@pytest.mark.parametrize("theta", [0.3, 0.6])
def test_ties_go_to_the_lower_index(theta):
    maps = np.random.default_rng(0).choice([1.0, 2.0, 4.0], (2, 3, 300))
    maps /= maps.sum(-1, keepdims=True)
    mask = information_mask(maps, theta)
    for h in range(2):
        for i in range(3):
            assert np.array_equal(mask[h, i], transcription(maps[h, i], theta, False))


def test_every_row_keeps_theta_and_is_minimal(stats):
    for theta in (0.21, 0.58, 0.9):
        for maps in stats.maps:
            mask = information_mask(maps, theta)
            kept = (maps * mask).sum(-1)
            assert (kept >= theta - 1e-12).all()
            least = np.where(mask, maps, np.inf).min(-1)
            assert ((kept - least < theta) | (mask.sum(-1) == 1)).all()


def test_sparsity_falls_with_theta(stats):
    found = [prune(stats, theta=t).sparsity for t in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("method", ["info", "ratio", "std", "random", "local"])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.95])
def test_target_sparsity_is_hit(stats, method, scope, sparsity):
    plan = prune(stats, sparsity=sparsity, method=method, scope=scope)
    assert abs(plan.sparsity - sparsity) < 5e-4
    if scope == "layer":
        assert all(abs(p.sparsity - sparsity) < 5e-4 for p in plan)


def test_solved_threshold_gives_the_same_mask(stats):
    plan = prune(stats, sparsity=0.8, protect=())
    again = prune(stats, theta=np.nextafter(plan.info["threshold"], 1), protect=())
    assert all(np.array_equal(a.keep, b.keep) for a, b in zip(plan, again))


def test_special_tokens_are_protected():
    rng = np.random.default_rng(0)
    maps = [rng.dirichlet(np.full(18, 0.1), (2, 18))]
    plan = prune(AttentionStats(maps, 1, special_tokens=2), sparsity=0.7)
    keep = plan.layer(0).keep
    assert keep[:, :2].all()
    assert keep[:, :, :2].all()
    free = prune(AttentionStats(maps, 1, special_tokens=0), sparsity=0.9)
    assert not free.layer(0).keep[:, 0].all()


def test_one_seed_gives_one_mask(stats):
    first, second = (prune(stats, sparsity=0.9, method="random", seed=3) for _ in range(2))
    assert first.checksum() == second.checksum()
    assert first.checksum() != prune(stats, sparsity=0.9, method="random", seed=4).checksum()


def test_tile_rows_share_their_keys(stats):
    plan = prune(stats, sparsity=0.9, protect=(), tile_rows=16)
    order = row_order(197, stats.grid, 1)
    for layer in plan:
        for start in range(0, 197, 16):
            group = layer.keep[:, order[start : start + 16]]
            assert (group.sum(1)[(group.sum(1) > 0)] <= 16).all()
    own = prune(stats, sparsity=0.9, protect=())
    slots = [sum(tile_slots(k, order) for p in x for k in p.keep) for x in (plan, own)]
    assert slots[0] < 0.65 * slots[1]


def test_impossible_and_contradictory_arguments(stats):
    cases = [
        ({"sparsity": 0.999}, "allow at most"),
        ({"sparsity": 1.0}, "below 1"),
        ({}, "exactly one"),
        ({"sparsity": 0.5, "theta": 0.5}, "exactly one"),
        ({"sparsity": 0.5, "method": "best"}, "method='best'"),
        ({"sparsity": 0.5, "scope": "head"}, "scope='head'"),
        ({"sparsity": 0.5, "protect": ("dog",)}, "protect='dog'"),
        ({"sparsity": 0.5, "tile_rows": 0}, "tile_rows=0"),
        ({"sparsity": 0.5, "official": True}, "official"),
        ({"sparsity": 0.5, "method": "output"}, "output_scores"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            prune(stats, **arguments)


def test_nan_is_named():
    maps = np.full((2, 4, 4), 0.25)
    maps[1, 3, 0] = np.nan
    with pytest.raises(InputError, match="layer 0, head 1, row 3"):
        prune(AttentionStats([maps], 1), sparsity=0.2)
    with pytest.raises(InputError, match="sums to 2"):
        prune(AttentionStats([np.full((1, 4, 4), 0.5)], 1), sparsity=0.2)


def test_uniform_maps_are_called_unsuited(stats):
    flat = AttentionStats([np.full((2, 65, 65), 1 / 65)], 1)
    verdict = diagnose(flat, 0.9)
    assert verdict.entropy == pytest.approx(1)
    assert not verdict.suited
    assert "unsuited" in str(verdict)
    peaked = diagnose(stats, 0.9)
    assert peaked.suited
    # Twice a random mask's mass is not enough where the rows are nearly uniform all the same.
    assert not Maskability(0.966, 0.207, 0.1, 0.9).suited
    assert peaked.retained == pytest.approx(
        retained_mass(stats, prune(stats, sparsity=0.9, protect=()))
    )


def test_morton_interleaves_bits():
    # Z-order of a 4 x 4 grid, as in every textbook
    assert morton((4, 4)).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert sorted(morton((5, 7))) == list(range(35))


def test_output_error_is_that_of_the_masked_layer(model, images):
    stats = collect_attention(model, [images])
    seen = []
    hook = model.blocks[0].attn.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    model(images)
    hook.remove()
    plan = prune(stats, sparsity=0.5, protect=())
    qkv = model.blocks[0].attn.qkv(seen[0]).view(6, 17, 3, 4, 8).permute(2, 0, 3, 1, 4)
    keep = torch.from_numpy(plan.layer(0).keep.copy())
    dense, sparse = (scaled_dot_product_attention(*qkv, attn_mask=m) for m in (None, keep))
    everything = SparsityPlan.from_masks([np.ones((4, 17, 17), bool)] * 2)
    one = SparsityPlan((plan.layer(0), everything.layer(1)))
    expected = ((sparse - dense).square().sum() / dense.square().sum()).item()
    assert output_error(model, one, images) == pytest.approx(expected / 2, rel=1e-3)
    assert output_error(model, everything, images) < 1e-12
    with pytest.raises(InputError, match="plan has 1 layers and the model 2"):
        output_error(model, SparsityPlan((plan.layer(0),)), images)


def test_the_diagnostic_weighs_the_outputs_error(model, images):
    stats = collect_attention(model, [images])
    verdict = diagnose(stats, 0.5, model, images)
    plan = prune(stats, sparsity=0.5, protect=())
    assert verdict.error == pytest.approx(output_error(model, plan, images))
    assert "the output's error is" in str(verdict)
    assert Maskability(0.9, 0.5, 0.1, 0.9, error=0.1, error_random=0.2).suited
    assert not Maskability(0.9, 0.5, 0.1, 0.9, error=0.2, error_random=0.1).suited
    with pytest.raises(InputError, match="model and images: give both"):
        diagnose(stats, 0.5, model)


@pytest.mark.stress
def test_deit_base_is_solved_in_a_second():
    rng = np.random.default_rng(0)
    big = AttentionStats([rng.dirichlet(np.full(197, 0.1), (12, 197)) for _ in range(12)], 1)
    start = time.perf_counter()
    plan = prune(big, sparsity=0.9)
    assert time.perf_counter() - start < 5
    assert abs(plan.sparsity - 0.9) < 5e-4
