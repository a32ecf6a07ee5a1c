import numpy as np
import pytest
from conftest import random_mask
from scipy import sparse
from vitcod import InputError, LayerPlan, SparsityPlan, import_mask, polarize, prune
from vitcod.masks import export_mask
from vitcod.polarize import csc, greedy_order, permutation_of


@pytest.fixture
def plan():
    return polarize(SparsityPlan.from_masks([random_mask(3, 17, 17, 0.3, s) for s in range(2)]))


def test_csr_and_csc_are_scipys(plan):
    layer = plan.layer(0)
    ptr, idx = layer.csr()
    for h, keep in enumerate(layer.keep):
        reference = sparse.csr_array(keep)
        part = ptr[h * 17 : (h + 1) * 17 + 1]
        assert np.array_equal(part - part[0], reference.indptr)
        assert np.array_equal(idx[part[0] : part[-1]], reference.indices)
        columns = sparse.csc_array(keep)
        columns.sort_indices()
        assert np.array_equal(csc(keep)[0], columns.indptr)
        assert np.array_equal(csc(keep)[1], columns.indices)


def test_polarize_is_a_permutation_that_keeps_every_entry(plan):
    for swap in (False, True):
        for layer in polarize(plan, 0.3, official_swap=swap):
            for h in range(layer.heads):
                p = layer.permutation[h]
                assert sorted(p) == list(range(17))
                assert layer.polarized(h).sum() == layer.keep[h].sum()
                counts = layer.keep[h].sum(0)
                n = layer.num_global[h]
                assert (counts[p[:n]] > 0.3 * 17).all()
                assert (counts[p[n:]] <= 0.3 * 17).all()


def test_stable_and_official_orders_by_hand():
    keep = np.zeros((6, 6), bool)
    keep[:, [2, 4]] = True
    assert permutation_of(keep, 3)[0].tolist() == [2, 4, 0, 1, 3, 5]
    assert permutation_of(keep, 3, official_swap=True)[0].tolist() == [2, 4, 0, 3, 1, 5]


def test_greedy_order_groups_equal_rows():
    keep = np.zeros((32, 20), bool)
    keep[::2, :5] = True
    keep[1::2, 10:15] = True
    order = greedy_order(keep)
    assert sorted(order) == list(range(32))
    assert len(set(order[:16] % 2)) == 1


@pytest.mark.parametrize("order", ["zorder", "greedy", "raster"])
def test_orders_are_permutations(plan, order):
    for layer in polarize(plan, order=order):
        assert all(sorted(o) == list(range(17)) for o in layer.order)


def test_file_round_trip(plan, tmp_path):
    path = plan.save(tmp_path / "p.safetensors")
    again = SparsityPlan.load(path)
    assert again.checksum() == plan.checksum()
    assert str(again) == str(plan)
    assert again.info == plan.info
    assert [p.name for p in tmp_path.iterdir()] == ["p.safetensors"]


def test_damaged_files_are_refused(plan, tmp_path):
    path = plan.save(tmp_path / "p.safetensors")
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"checksum|damaged|keeps no key"):
        SparsityPlan.load(path)
    path.write_bytes(b"junk")
    with pytest.raises(InputError, match="cannot be read"):
        SparsityPlan.load(path)
    with pytest.raises(InputError, match="cannot be read"):
        SparsityPlan.load(tmp_path / "missing")


def test_official_npy_round_trip(plan, tmp_path):
    path = export_mask(plan, tmp_path / "info.npy")
    assert np.load(path).dtype == bool
    again = import_mask(path)
    for a, b in zip(again, plan):
        assert np.array_equal(a.keep, b.keep)
    np.save(tmp_path / "float.npy", np.zeros((1, 1, 2, 2)))
    with pytest.raises(InputError, match="not a boolean array"):
        import_mask(tmp_path / "float.npy")
    with pytest.raises(InputError, match="cannot be read"):
        import_mask(tmp_path / "none.npy")


def test_a_row_without_a_key_is_named():
    keep = np.ones((2, 4, 4), bool)
    keep[1, 2] = False
    with pytest.raises(InputError, match="layer 0 keeps no key in row 2 of head 1"):
        SparsityPlan.from_masks([keep])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((2, 2)), "dtype float64"),
        (np.ones(3, bool), "shape"),
        (np.ones((0, 2, 2), bool), "shape"),
    ],
)
def test_bad_masks_are_named(mask, message):
    with pytest.raises(InputError, match=message):
        LayerPlan.from_mask(mask)


def test_plan_does_not_follow_its_mask():
    keep = np.ones((1, 3, 3), bool)
    plan = LayerPlan.from_mask(keep)
    keep[:] = False
    assert plan.keep.all()
    with pytest.raises(ValueError):
        plan.keep[0, 0, 0] = False


def test_resize_keeps_density_and_neighbourhoods(plan):
    big = plan.resize(8, 8)
    assert big.layer(0).keep.shape == (3, 65, 65)
    small = big.resize(4, 4)
    for a, b in zip(small, plan):
        assert np.array_equal(a.keep, b.keep)
    with pytest.raises(InputError, match="at least 1x1"):
        plan.resize(0, 4)
    with pytest.raises(InputError, match="no square grid"):
        SparsityPlan.from_masks([np.ones((1, 4, 4), bool)]).resize(2, 2)


def test_stats_resize_interpolates(stats):
    big = stats.resize(20, 20)
    assert big.maps[0].shape == (3, 401, 401)
    big.check()
    assert prune(big, sparsity=0.9).sparsity == pytest.approx(0.9, abs=5e-4)


def test_shards_put_together_are_the_plan():
    plan = polarize(SparsityPlan.from_masks([random_mask(4, 10, 10, 0.4)]))
    parts = [plan.shard_heads(r, 2).layer(0).keep for r in range(2)]
    assert np.array_equal(np.concatenate(parts), plan.layer(0).keep)
    with pytest.raises(InputError, match="world=3"):
        plan.shard_heads(0, 3)


def test_text_map():
    keep = np.zeros((1, 4, 4), bool)
    keep[0, :, 0] = True
    assert LayerPlan.from_mask(keep).to_text(width=4) == "█   \n█   "
    with pytest.raises(InputError, match="head=2"):
        LayerPlan.from_mask(keep).to_text(2)
