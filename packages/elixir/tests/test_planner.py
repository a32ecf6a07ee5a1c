"""Oracles: the authors' unit test and golden values, exhaustive search, HiGHS, closed forms."""

import itertools
import random

import elixir
import numpy as np
import pytest
import torch
from common import HARDWARE, gpt, gpt_batch, least_budget
from elixir.planner import belady_loads, knapsack, packing, palindrome_loads, paper
from elixir.planner.belady import _python
from elixir.planner.cache import Cache
from elixir.planner.simulate import ChunkCost, simulate
from elixir.profile.interference import measure_interference
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp


def exhaustive(steps, blocks):
    """Try every eviction."""
    states = {frozenset(): 0}
    for step in steps:
        need, following = frozenset(step), {}
        for held, cost in states.items():
            loads = cost + len(need - held)
            keep = held - need
            room = blocks - len(need)
            for kept in itertools.combinations(sorted(keep), min(len(keep), room)):
                state = need | frozenset(kept)
                following[state] = min(following.get(state, 1 << 30), loads)
        states = following
    return min(states.values())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.sets(st.integers(0, 5), min_size=1, max_size=2), min_size=1, max_size=10),
    st.integers(2, 4),
)
def test_belady_equals_exhaustive_search(steps, blocks):
    steps = [sorted(s) for s in steps]
    assert belady_loads(steps, blocks) == exhaustive(steps, blocks)
    items = [c for s in steps for c in s]
    offsets = np.cumsum([0] + [len(s) for s in steps]).tolist()
    assert _python(items, offsets, 6, blocks) == belady_loads(steps, blocks)


def test_belady_closed_forms():
    """The authors' unit test (12 moves); palindromes; three forward passes (112/100/80)."""
    assert 2 * belady_loads([[0], [1, 2], [3], [3], [1, 2], [0]], 2) == 12
    trace = [[i] for i in [*range(40), *reversed(range(40))]]
    for k in range(4, 41):
        assert belady_loads(trace, k) == palindrome_loads(40, k) == 80 - k
    loop = [[i] for i in range(40)] * 3
    assert [belady_loads(loop, k) for k in (4, 10, 20)] == [112, 100, 80]


def test_belady_refuses_too_few_blocks():
    with pytest.raises(ValueError, match="blocks=1: a step needs 2"):
        belady_loads([[0, 1]], 1)
    with pytest.raises(ValueError, match="blocks=0"):
        belady_loads([[0]], 0)


@pytest.mark.parametrize(
    ("shape", "budget", "golden"),
    [
        ((1024, 24), 10**8, (303_360_000, 16_795_648, 3, 19, 70, 15_757_312, 1_175_695_360)),
        ((3072, 32), 10**9, (3_628_308_480, 75_530_240, 11, 49, 174, 72_673_280, 13_142_261_760)),
    ],
)
def test_golden_values_of_the_official_search(shape, budget, golden):
    sizes, steps = paper.gpt2_tensors(*shape)
    plan = paper.search(sizes, steps, budget)
    got = (
        sum(sizes),
        plan.chunk_size,
        plan.blocks,
        plan.chunks,
        plan.moves,
        plan.waste,
        plan.objective,
    )
    assert got == golden


@pytest.mark.parametrize(
    ("shape", "budget"), [((1024, 24), 10**8), ((3072, 32), 10**9), ((4096, 48), 4 * 10**9)]
)
def test_uneven_chunks_reach_the_bound(shape, budget):
    """2 * total - M + 2C elements (C of the official plan), within 1 %; never above it."""
    sizes, steps = paper.gpt2_tensors(*shape)
    official = paper.search(sizes, steps, budget)
    capacity = budget - 2 * official.chunk_size
    home, chunks = {}, []
    for step in steps[: len(steps) // 2]:
        for t in step:
            home[t] = len(chunks)
        chunks.append(sum(sizes[t] for t in step))
    trace = [sorted({home[t] for t in step}) for step in steps]
    cache = Cache(chunks, capacity, trace)
    for position, step in enumerate(trace):
        cache.position = position
        for chunk in step:
            if chunk not in cache.offset:
                offset, victims = cache.fit(chunk)
                for victim in victims:
                    cache.drop(victim)
                cache.place(chunk, offset)
    bound = 2 * sum(sizes) - budget + 2 * official.chunk_size
    assert cache.loaded_bytes <= 1.01 * bound
    assert cache.loaded_bytes <= official.objective / 2


def test_priority_table():
    """Section 1.6 of the reference: I and J for n = 1, 2, 4, 8 in fp16."""
    table = {1: (0.1905, 0.0907), 2: (0.1074, 0.1177), 4: (0.0576, 0.1551), 8: (0.0299, 0.2148)}
    for n, (cache, optimizer) in table.items():
        got = paper.priority(n)
        assert got.cache == pytest.approx(cache, abs=5e-5)
        assert got.optimizer == pytest.approx(optimizer, abs=5e-5)
        assert paper.priority(n, itemsize=4).cache_first == (n == 1)


def test_paper_search_ends_when_nothing_fits():
    """The authors' loop never ends here."""
    sizes, steps = paper.gpt2_tensors(1024, 2)
    with pytest.raises(ValueError, match="too small"):
        paper.search(sizes, steps, 1)


def knapsack_milp(values, weights, capacity):
    done = milp(
        -np.array(values),
        constraints=LinearConstraint(np.array([weights]), ub=capacity),
        integrality=np.ones(len(values)),
        bounds=Bounds(0, 1),
    )
    return -done.fun


def check_knapsack(count):
    draw = random.Random(count)
    for _ in range(count):
        n = draw.randint(1, 12)
        values = [draw.uniform(-1, 10) for _ in range(n)]
        weights = [draw.randint(1, 50) for _ in range(n)]
        capacity = draw.randint(0, 200)
        chosen = knapsack(values, weights, capacity)
        assert sum(weights[i] for i in chosen) <= capacity
        assert sum(values[i] for i in chosen) == pytest.approx(
            knapsack_milp(values, weights, capacity), abs=1e-6
        )


def test_placement_equals_milp():
    check_knapsack(100)


@pytest.mark.stress
def test_placement_equals_milp_1000():
    check_knapsack(1000)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_cache_never_overlaps_and_never_exceeds(data):
    sizes = data.draw(st.lists(st.integers(1, 9).map(lambda v: 64 * v), min_size=1, max_size=8))
    capacity = data.draw(st.integers(max(sizes), sum(sizes) + 64))
    order = data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=40))
    cache = Cache(sizes, capacity, [[c] for c in order])
    for position, chunk in enumerate(order):
        cache.position = position
        if chunk not in cache.offset:
            offset, victims = cache.fit(chunk)
            for victim in victims:
                cache.drop(victim)
            cache.place(chunk, offset)
        spans = sorted((o, o + sizes[c]) for c, o in cache.offset.items())
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        assert spans[-1][1] <= capacity


def test_pinned_chunks_are_never_victims():
    cache = Cache([64, 64, 64], 128, [[0], [1], [2]])
    for c in (0, 1):
        cache.place(c, 64 * c)
    cache.pins[0] = cache.pins[1] = 1
    assert cache.fit(2) is None
    cache.pins[1] = 0
    assert cache.fit(2) == (64, [1])


def test_plan_round_trip(tmp_path):
    model, batch = gpt(), gpt_batch()
    plan = elixir.plan(model, batch, device_budget="2MiB", hardware=HARDWARE)
    plan.save(tmp_path / "plan.json")
    again = elixir.Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert again.explain() == plan.explain()
    with pytest.raises(ValueError, match="loaded from a file"):
        again.what_if(["1GiB"])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_plans_say_so_in_one_line(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "plan.json"
    if not path.exists():
        elixir.plan(gpt(), gpt_batch(), device_budget="2MiB", hardware=HARDWARE).save(path)
    raw = bytearray(path.read_bytes())
    cut = data.draw(st.integers(0, len(raw) - 3))
    path.with_name("cut.json").write_bytes(raw[:cut])
    with pytest.raises(ValueError, match="not a plan"):
        elixir.Plan.load(path.with_name("cut.json"))


def test_plans_of_another_model_are_refused():
    plan = elixir.plan(gpt(), gpt_batch(), device_budget="4MiB", hardware=HARDWARE)
    with pytest.raises(elixir.StalePlanError):
        elixir.initialize(gpt(dim=64), plan=plan)


def test_more_budget_never_predicts_a_slower_step():
    model, batch = gpt(), gpt_batch()
    plan = elixir.plan(model, batch, device_budget="64MiB", hardware=HARDWARE)
    least = plan.least_budget
    rows = plan.what_if([least - 1, least, 2 * least, 4 * least, "64MiB"])
    assert not rows[0]["feasible"]
    seconds = [r["seconds"] for r in rows[1:]]
    assert seconds == sorted(seconds, reverse=True)


def test_step_is_bounded_by_every_resource():
    """Alpha-beta lower bound: no step is shorter than compute, bytes over bandwidth, or AdamW."""
    model, batch = gpt(), gpt_batch()
    for budget in (least_budget(model, batch), "2MiB", "64MiB"):
        plan = elixir.plan(model, batch, device_budget=budget, hardware=HARDWARE)
        p = plan.predicted
        floor = max(
            p["compute"],
            p["loaded_bytes"] / HARDWARE.h2d,
            p["stored_bytes"] / HARDWARE.d2h,
            p["adam"],
        )
        assert p["seconds"] >= floor


@pytest.mark.parametrize(("prefetch", "seconds"), [(0, 4.6), (1, 3.5)])
def test_copies_take_time_from_compute(prefetch, seconds):
    """Two loads of 1 s by hand: 0.1 s each to hand over, 0.2 s to wake, 0.1 s lost beside one."""
    hardware = elixir.Hardware(
        h2d=1000.0, latency=0.0, copy_call=0.1, wake=0.2, copy_disturbs=6e-5, copy_beside=0.04
    )
    line = simulate(
        [ChunkCost(1000, 0)] * 2, [[0], [1]], 2, [1.0, 1.0], 2000, hardware, prefetch=prefetch
    )
    assert line.seconds == pytest.approx(seconds)


def test_updates_beside_compute_take_longer_and_slow_it():
    """One chunk in the backward pass; its update of 1 s lasts 2 s beside 4 s of compute."""
    hardware = elixir.Hardware(
        h2d=1e15, d2h=1e15, latency=0.0, adam_host=10.0, adam_beside=2.0, adam_disturbs=0.05
    )
    costs = [ChunkCost(40, 10), ChunkCost(40, 0)]
    line = simulate(
        costs, [[0], [1]], 0, [1.0, 4.0], 80, hardware, prefetch=2, step_in_backward=True
    )
    assert line.adam == pytest.approx(2.0)
    assert line.seconds == pytest.approx(5.5)  # 10 elements cost compute 0.05 s each


def test_measured_interference_is_a_profile_and_leaves_the_random_state():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    found = measure_interference()
    assert torch.equal(torch.rand(1), expected)
    hardware = elixir.Hardware(**found)
    assert 0 < hardware.copy_call < 0.1
    assert hardware.adam_beside >= 1
    with pytest.raises(ValueError, match=r"copy_call=-1.0: must be a positive rate"):
        elixir.Hardware(copy_call=-1.0)


def test_elixir_never_plans_a_slower_step_than_the_paper():
    model, batch = gpt(layers=6), gpt_batch()
    least = least_budget(model, batch, policy="paper", recompute="none")
    for factor in (1.0, 1.5, 2.0):
        budget = int(least * factor)
        options = {"device_budget": budget, "hardware": HARDWARE, "recompute": "none"}
        ours = elixir.plan(model, batch, **options)
        theirs = elixir.plan(model, batch, policy="paper", **options)
        assert ours.predicted["seconds"] <= theirs.predicted["seconds"]


def test_the_papers_least_budget_is_true():
    """Its chunks depend on the budget; the least budget that the error names holds all the same."""
    model, batch = gpt(dim=64), gpt_batch()
    options = {"policy": "paper", "hardware": HARDWARE, "recompute": "none"}
    least = least_budget(model, batch, policy="paper", recompute="none")
    elixir.plan(model, batch, device_budget=least, **options)
    with pytest.raises(elixir.InfeasiblePlanError):
        elixir.plan(model, batch, device_budget=least * 99 // 100, **options)


def test_override_patterns():
    model, batch = gpt(), gpt_batch()
    plan = elixir.plan(model, batch, device_budget="64MiB", hardware=HARDWARE)
    forced = plan.override("blocks.1.*", tier="host")
    tiers = {n: c.tier for c in forced.chunks for n in c.parameters}
    assert all((t == "host") for n, t in tiers.items() if n.startswith("blocks.1."))
    assert "device" in tiers.values()
    with pytest.raises(ValueError, match="tier='gpu': allowed are host, device, disk, pinned"):
        plan.override("blocks.*", tier="gpu")
    with pytest.raises(ValueError, match="shard='columns': allowed are"):
        plan.override("blocks.*", shard="columns")
    with pytest.raises(ValueError, match="matches no parameter"):
        plan.override("layers.*", tier="host")


def test_host_budget_moves_states_to_disk_or_is_refused():
    model, batch = gpt(), gpt_batch()
    options = {"device_budget": least_budget(model, batch), "hardware": HARDWARE}
    roomy = elixir.plan(model, batch, **options)
    tight = roomy.host_bytes * 3 // 4
    with pytest.raises(elixir.InfeasiblePlanError, match="disk"):
        elixir.plan(model, batch, host_budget=tight, **options)
    plan = elixir.plan(model, batch, host_budget=tight, disk=True, **options)
    assert any(c.tier == "disk" for c in plan.chunks)
    assert plan.disk_bytes > 0


def test_chunks_cover_every_parameter_once_and_are_aligned():
    model, batch = gpt(), gpt_batch()
    plan = elixir.plan(model, batch, device_budget="2MiB", hardware=HARDWARE)
    names = [n for c in plan.chunks for n in c.parameters]
    assert sorted(names) == sorted(n for n, _ in model.named_parameters())
    assert all(o % 64 == 0 for c in plan.chunks for o in c.offsets)
    assert packing.aligned(1) == 64


def test_large_meta_model_is_planned_without_memory():
    from elixir.models import GPT

    with torch.device("meta"):
        model = GPT(vocab=50257, context=1024, dim=4096, layers=4, heads=32)
    tokens = torch.zeros(1, 1024, dtype=torch.long)
    options = {"dtype": torch.bfloat16, "hardware": HARDWARE, "recompute": "all"}
    plan = elixir.plan(model, [tokens, tokens], device_budget="8GiB", **options)
    assert plan.device_bytes <= plan.device_budget
    with pytest.raises(elixir.StalePlanError, match="meta"):
        elixir.initialize(model, plan=plan)


def test_bad_arguments_are_named():
    model, batch = gpt(), gpt_batch()
    for kw, text in (
        ({"device_budget": "lots"}, "device_budget='lots'"),
        ({"device_budget": 0}, "device_budget=0"),
        ({"device_budget": "1MiB", "policy": "x"}, "policy='x'"),
        ({"device_budget": "1MiB", "recompute": "x"}, "recompute='x'"),
        ({"device_budget": "1MiB", "prefetch": -1}, "prefetch=-1"),
        ({"device_budget": "1MiB", "dtype": torch.int8}, "dtype="),
        ({"device_budget": "1MiB", "world": 0}, "world=0"),
    ):
        with pytest.raises(ValueError, match=text):
            elixir.plan(model, batch, hardware=HARDWARE, **kw)


@pytest.mark.parametrize("policy", ["elixir", "paper"])
def test_the_least_budget_does_not_depend_on_the_budget(policy):
    model, batch = gpt(), gpt_batch()
    roomy = elixir.plan(model, batch, device_budget="1GiB", hardware=HARDWARE, policy=policy)
    assert roomy.least_budget == least_budget(model, batch, policy=policy)
    for factor in (1.0, 1.01, 1.3, 2.0):
        again = roomy._replan(device_budget=int(roomy.least_budget * factor))
        assert again.least_budget == roomy.least_budget
        assert again.device_bytes <= again.device_budget


def test_a_gpu_is_planned_with_room_for_its_allocator():
    """The authors count 1.25 times the activations' peak on CUDA (``search/optimal.py``)."""
    both = [
        elixir.plan(
            gpt(),
            gpt_batch(),
            device_budget="1GiB",
            hardware=HARDWARE,
            recompute="none",
            device=device,
        )
        for device in ("cpu", "cuda")
    ]
    assert both[1].activation_bytes == int(1.25 * both[0].activation_bytes)
