import itertools
import math
import random
from dataclasses import replace

import pytest
from nasa import Architecture, SearchSpace
from nasa.demo import typed
from nasa.hw import (
    Accelerator,
    InfeasibleMappingError,
    Layer,
    Workload,
    allocate,
    area_of,
    search_allocation,
)
from nasa.hw import map as map_workload
from nasa.hw.tables import layer_table

MACHINE = Accelerator.from_yaml("nasa_45nm")


def topologies(count, seed=0):
    space, source = SearchSpace.hybrid_all(), random.Random(seed)
    for _ in range(count):
        choices = [
            source.choice([k for k, c in enumerate(cell.candidates) if c.operator == "conv"])
            for cell in space.cells
        ]
        yield Architecture(space, tuple(choices))


def test_one_chunk_is_the_sum_of_the_layers_best():
    """Alone in the accelerator a chunk's EDP is that of each layer's best tiling, flow by flow."""
    work = Workload("w", [Layer.conv("a", "conv", 8, 16, 8, 3), Layer.conv("b", "conv", 16, 8, 8)])
    result = map_workload(work, MACHINE)
    edps = []
    for flow in ("rs", "is", "ws", "os"):
        tables = [layer_table(layer, flow, MACHINE, 256, "edp") for layer in work]
        rows = [t.best(168, 131070) for t in tables]
        energy = sum(t.energy[r] for t, r in zip(tables, rows, strict=True)) / 1e9
        latency = sum(int(t.cycles[r]) for t, r in zip(tables, rows, strict=True)) / 250e3
        edps.append(energy * latency)
    assert math.isclose(result.edp, min(edps), rel_tol=1e-12)
    assert result.edp >= result.lower_bound


def test_equals_trying_every_combination_by_hand():
    topology = next(topologies(1))
    work = typed(topology, ("conv", "shift", "adder"), 0).workload()
    best = map_workload(work, MACHINE)
    by_hand = []
    for flows in itertools.product(("rs", "is", "ws", "os"), repeat=3):
        fixed = dict(zip(("conv", "shift", "adder"), flows, strict=True))
        try:
            by_hand.append(map_workload(work, MACHINE, dataflows=fixed).edp)
        except InfeasibleMappingError:
            continue
    assert best.combinations == 64
    assert best.feasible == len(by_hand)
    assert math.isclose(best.edp, min(by_hand))


def test_chunks_never_hold_more_than_the_buffer():
    topology = next(topologies(1, 3))
    result = map_workload(typed(topology, ("conv", "shift", "adder"), 3).workload(), MACHINE)
    events = sorted({m.start_ms for m in result.layers})
    for time in events:
        held = 0
        for operator in result.dataflows:
            running = [
                m for m in result.layers if m.layer.operator == operator and m.start_ms <= time
            ]
            held += max(running, key=lambda m: m.start_ms).point.buffer if running else 0
        assert held < MACHINE.global_buffer_words


def test_energy_and_interval_add_up():
    topology = next(topologies(1, 5))
    result = map_workload(typed(topology, ("conv", "adder"), 5).workload(), MACHINE)
    table = result.energy_by()
    total = sum(v for levels in table.values() for v in levels.values())
    assert math.isclose(total, result.energy_mj, rel_tol=1e-12)
    assert math.isclose(result.interval_ms, max(result.chunk_latency_ms.values()))
    for operator, latency in result.chunk_latency_ms.items():
        own = [m.latency_ms for m in result.layers if m.layer.operator == operator]
        assert math.isclose(sum(own), latency)
    assert result.latency_ms >= result.interval_ms
    assert math.isclose(result.edp, result.energy_mj * result.interval_ms)


def test_hybrids_save_at_least_the_stated_share_of_edp():
    """Paper, Fig. 6: up to 51.5 %. Same topology, only types changed: mean EDP <= 0.70 of conv."""
    ratios = {"shift": [], "all": []}
    for i, topology in enumerate(topologies(5, 0)):
        conv = map_workload(topology.workload(), MACHINE).edp
        for name, kinds in (("shift", ("conv", "shift")), ("all", ("conv", "shift", "adder"))):
            work = typed(topology, kinds, i).workload()
            found = search_allocation(work, MACHINE, budget=40)
            ratios[name].append(found.best.edp / conv)
    for name, values in ratios.items():
        assert sum(values) / len(values) <= 0.70, (name, values)


def test_maps_a_network_that_row_stationary_alone_cannot_run():
    """The paper's Fig. 8: all-RS does not fit the shared buffer for some hybrid networks."""
    topology = list(topologies(20, 100))[19]
    found = 0
    for operators in (("conv", "shift"), ("conv", "shift", "adder")):
        work = typed(topology, operators, 19).workload()
        result = map_workload(work, MACHINE)
        try:
            map_workload(work, MACHINE, dataflows=dict.fromkeys(result.dataflows, "rs"))
        except InfeasibleMappingError:
            found += 1
    assert found == 1


def test_searched_split_is_never_worse_and_keeps_the_area():
    for i, topology in enumerate(topologies(2, 11)):
        work = typed(topology, ("conv", "shift", "adder"), i).workload()
        found = search_allocation(work, MACHINE, budget=20)
        limit = max(MACHINE.area, area_of(allocate(work, MACHINE), MACHINE))
        assert area_of(found.best.processing_elements, MACHINE) <= limit + 1e-9
        if found.proportional:
            assert found.best.edp <= found.proportional.edp


def test_allocation_follows_equation_8():
    work = Workload(
        "w",
        [Layer.conv("a", "conv", 8, 8, 8), Layer.conv("b", "shift", 8, 8, 8),
         Layer.conv("c", "adder", 8, 16, 8)],
    )  # fmt: skip
    operations = work.macs()
    unit = 168 / (operations["conv"] + operations["shift"] / 1.88 + operations["adder"] / 1.88)
    assert allocate(work, MACHINE) == {
        "conv": math.floor(unit * operations["conv"]),
        "shift": math.ceil(unit * operations["shift"]),
        "adder": math.ceil(unit * operations["adder"]),
    }


def test_keeping_some_buffer_back_maps_what_the_published_schedule_cannot():
    """With 20000 words the published greedy schedule lets a chunk take what another one needs."""
    words = 20000
    published = replace(Accelerator.from_yaml("nasa_f_published"), global_buffer_words=words)
    stuck = 0
    for i, topology in enumerate(topologies(3, 0)):
        work = typed(topology, ("conv", "shift", "adder"), i).workload()
        assert map_workload(work, replace(MACHINE, global_buffer_words=words)).feasible > 0
        try:
            map_workload(work, published)
        except InfeasibleMappingError:
            stuck += 1
    assert stuck >= 1


def test_infeasible_layer_names_memory_and_least_increase():
    work = Workload("w", [Layer.conv("wide", "conv", 4, 4, 32, 5)])
    machine = Accelerator("tiny", global_buffer_words=30)
    with pytest.raises(
        InfeasibleMappingError, match=r"'wide'.*global buffer.*smallest that fits"
    ) as e:
        map_workload(work, machine)
    least = int(str(e.value).rsplit(" ", 1)[1])
    map_workload(work, Accelerator("fits", global_buffer_words=least), dataflows={"conv": "rs"})
    machine = Accelerator("not yet", global_buffer_words=least - 1)
    with pytest.raises(InfeasibleMappingError):
        map_workload(work, machine, dataflows={"conv": "rs"})


def test_too_small_an_area_says_how_much_is_needed():
    work = Workload("w", [Layer.conv("a", "conv", 64, 64, 8), Layer.conv("b", "adder", 1, 1, 8)])
    with pytest.raises(ValueError, match=r"area=10 MAC PEs is too small.*at least"):
        map_workload(work, Accelerator("a", area=10.0))
    with pytest.raises(InfeasibleMappingError, match="adder chunk has no PE"):
        map_workload(work, MACHINE, processing_elements={"conv": 100, "adder": 0})


def test_unknown_names_are_refused():
    work = Workload("w", [Layer.conv("a", "conv", 4, 4, 8)])
    with pytest.raises(ValueError, match="objective='speed'"):
        map_workload(work, MACHINE, "speed")
    with pytest.raises(ValueError, match="'conv': 'xy'"):
        map_workload(work, MACHINE, dataflows={"conv": "xy"})
    with pytest.raises(ValueError, match="buffer_split"):
        map_workload(work, MACHINE, buffer_split={"conv": 1.5})
    with pytest.raises(ValueError, match="no layer"):
        Workload("empty", [])


def test_result_round_trips_its_numbers():
    work = Workload("w", [Layer.conv("a", "conv", 8, 16, 8, 3), Layer.conv("b", "adder", 16, 8, 8)])
    result = map_workload(work, MACHINE)
    data = result.to_json()
    again = Workload.from_json({"schema_version": 1, "name": "w", "layers": [
        {k: row[k] for k in work.layers[0].to_json()} for row in data["layers"]
    ]})  # fmt: skip
    assert again.layers == work.layers
    assert map_workload(again, MACHINE).edp == result.edp
    energy = sum(sum(row["energy_pj"].values()) for row in data["layers"]) / 1e9
    assert math.isclose(energy, data["energy_mj"], rel_tol=1e-12)
