"""Oracles: the authors' published logs, bounds, and formulas worked by hand."""

from math import ceil

import numpy as np
import pytest
from conftest import random_mask
from vitcod import InputError, SparsityPlan, polarize, simulate
from vitcod.sim import Architecture, official_cycles
from vitcod.sim.baselines import dense_cycles, sanger_load_balance, spatten_cycles
from vitcod.sim.engine import head_lines, longest_line
from vitcod.synthetic import vit_like_plan


def head_zero(num_global, sparse_entries):
    """Make 197 tokens, 3 heads; head 0 has these counts, and no sparse column above 50."""
    keep = np.zeros((3, 197, 197), bool)
    keep[:, :, :num_global] = True
    rows, columns = np.divmod(np.arange(sparse_entries), 197 - num_global)
    keep[0, rows, num_global + columns] = True
    return keep


def test_published_log_lines():
    # layer 0: SDDMM 120 and 117, SpMM 119 and 115; layer 2: 840 / 744, 767 / 745, N_gt 70
    plan = SparsityPlan.from_masks([head_zero(1, 2250), head_zero(70, 2478)])
    first, second = official_cycles(plan).layers
    assert (first.sddmm_dense, first.sddmm_sparse) == (120, 117)
    assert (first.spmm_dense, first.spmm_sparse) == (119, 115)
    assert second.num_global == 70
    assert (second.sddmm_dense, second.sddmm_sparse) == (840, 744)
    assert (second.spmm_dense, second.spmm_sparse) == (767, 745)


def test_published_totals():
    # What does not depend on the mask: loads 9,492, decode 4,728; linear 681,492; FFN 1,361,664.
    plan = SparsityPlan.from_masks([head_zero(1, 2250)] * 12)
    found = official_cycles(plan)
    assert found.loads == 9_492
    assert found.decode == 4_728
    assert found.linear == 681_492
    assert found.ffn == 1_361_664
    assert found.total == 2_043_156
    assert found.attention == 9_492  # loads hide 12 x (120 + 119) cycles of compute


def test_official_division_by_zero_is_refused():
    with pytest.raises(InputError, match="layer 0 head 0 has no token with more than 50"):
        official_cycles(SparsityPlan.from_masks([np.eye(197, dtype=bool)[None]]))


def test_denser_work_is_within_a_quarter_of_its_bound():
    keep = np.ones((3, 197, 197), bool)
    report = simulate(SparsityPlan.from_masks([keep]))
    bound = ceil(2 * 3 * 197 * 197 * 64 / 512)
    layer = report.layers[0]
    assert bound <= layer.sddmm + layer.spmm <= 1.25 * bound
    assert report.attention >= report.lower_bound


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95])
def test_cycles_respect_compute_and_bandwidth(sparsity):
    report = simulate(vit_like_plan(3, 3, 197, sparsity))
    assert report.attention >= report.lower_bound
    for layer in report.layers:
        assert layer.total >= layer.macs / 512
        assert layer.total >= layer.traffic / report.arch.bytes_per_cycle
        assert 0 < layer.utilisation <= 1


def test_cycles_grow_with_entries():
    cycles = [simulate(vit_like_plan(1, 3, 197, s)).attention for s in (0.95, 0.9, 0.8, 0.5)]
    assert cycles == sorted(cycles)


def test_end_to_end_stands_beside_attention_alone():
    report = simulate(vit_like_plan(12, 3, 197, 0.9))
    alone, whole = report.speedup("dense")
    assert alone > whole > 1
    share = report.baselines["dense"] / (report.baselines["dense"] + report.linear + report.ffn)
    assert whole == pytest.approx(1 / (1 - share + share / alone))  # Amdahl
    assert "end to end" in str(report)
    assert report.to_json()["end_to_end_cycles"] == report.end_to_end


def test_polarized_plan_and_threshold_agree():
    plan = vit_like_plan(1, 3, 197, 0.9)
    bare = SparsityPlan.from_masks([p.keep for p in plan])
    assert simulate(plan).attention == simulate(bare).attention
    assert simulate(polarize(bare, 50), compat="official").official is not None


def test_lines_follow_the_work():
    assert sum(head_lines([100, 10, 1], 64)) == 64
    assert min(head_lines([100, 10, 0], 64)) == 1
    assert head_lines([1] * 70, 64) == [1] * 70
    assert longest_line(np.array([7, 5, 3, 3]), 2) == 10


def test_baselines_by_hand():
    ones = SparsityPlan.from_masks([np.ones((1, 64, 64), bool)]).layer(0)
    # 64 x 64 x 64 x 2 MACs on 512 units; traffic 16,384 bytes at 164.9 a cycle is 100 cycles
    assert dense_cycles(ones, 64, Architecture()) == 1024
    assert sanger_load_balance(ones.keep) == 1
    one_key = np.eye(64, dtype=bool)[None]
    assert sanger_load_balance(one_key) == 1 / 16
    # At density 1 SpAtten is dense and pays for its top-k.
    assert spatten_cycles(ones, 64, Architecture()) == 1024 + 64 * 6 // 16


def test_energy_is_dominated_by_counts():
    report = simulate(vit_like_plan(1, 3, 197, 0.9))
    layer, arch = report.layers[0], report.arch
    least = layer.macs * arch.mac_energy + layer.traffic * arch.dram_energy
    assert least <= report.energy < 3 * least


def test_bad_arguments():
    plan = SparsityPlan.from_masks([random_mask(2, 9, 9, 0.5)])
    cases = (
        ({"arch": "tpu"}, "arch='tpu'"),
        ({"baselines": ("magic",)}, "baseline='magic'"),
        ({"compat": "new"}, "compat='new'"),
        ({"head_dim": 0}, "head_dim=0"),
    )
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            simulate(plan, **arguments)
    with pytest.raises(InputError, match="was not simulated"):
        simulate(plan).speedup("cpu")
    with pytest.raises(InputError, match="square"):
        official_cycles(SparsityPlan.from_masks([random_mask(1, 4, 9, 0.5)]))
