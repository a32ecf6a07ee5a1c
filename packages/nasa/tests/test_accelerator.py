"""The model against published figures and a literal evaluation of the published formulas."""

import csv
import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest
from nasa.hw import Accelerator, Layer, systolic_cycles, tilings
from nasa.hw.dataflows import DATAFLOWS, Memories
from nasa.hw.tables import layer_table


def factorisations(number, parts):
    if parts == 1:
        yield (number,)
        return
    for d in range(1, number + 1):
        if number % d == 0:
            for rest in factorisations(number // d, parts - 1):
                yield (d, *rest)


def published(layer, dataflow, pes, unit_mac, bits, buffer=131070):
    """Best (energy pJ, cycles) by looping over every tiling, one formula at a time.

    Written from the table of formulas, dictionary by dictionary, as a check of the vectorised
    enumeration; slow on purpose.
    """
    m, c = layer.filters, layer.channels
    (r, s), (e, f), u = layer.kernel, layer.out, layer.stride
    h, w = layer.height, layer.width
    fc = (e, f) == (1, 1)
    ni, nw, no = h * w * c, r * s * c * m, e * f * m
    best = None
    ms = {"is": [(a, b, 1, 1) for a, b in factorisations(m, 2)]}.get(
        dataflow, list(factorisations(m, 4))
    )
    cs = {"os": [(a, b, 1) for a, b in factorisations(c, 2)]}.get(
        dataflow, list(factorisations(c, 3))
    )
    if dataflow == "rs":
        es, fs = [(1, a, b) for a, b in factorisations(e, 2)], [(f, 1, 1)]
    elif dataflow == "ws":
        es = [(a, b, 1) for a, b in factorisations(e, 2)]
        fs = [(a, b, 1) for a, b in factorisations(f, 2)]
    else:
        es, fs = list(factorisations(e, 3)), list(factorisations(f, 3))
    for (m0, m1, m2, m3), (c0, c1, c2), (e0, e1, e3), (f0, f1, f3) in itertools.product(
        ms, cs, es, fs
    ):
        if m0 > 16:
            continue
        if not fc and ((dataflow == "rs" and e1 == 1) or (dataflow != "rs" and 1 in (e0, f0))):
            continue
        short = ((e0 if f0 > e0 else f0) - 1) * u + r
        if dataflow == "rs":
            ok = m1 * c1 * e1 * r < pes and c0 * s < 48 and m0 * c0 * s < 112
            gb = c1 * c0 * ((e1 - 1) * u + r) * ((f - 1) * u + s) + m2 * m1 * m0 * e1 * f
            cycles = m3 * m2 * m0 * c2 * c0 * e3 * f * s
            dram = m3 * ni + e3 * nw + no
            glb = m3 * m2 * ni + max(2 * (c2 - 1), 1) * no
            noc = m3 * m2 * m1 * r * e / h * ni + e3 * e1 * nw + max(c2 * (c1 * r - 1), 1) * no
            rf = m3 * m2 * m1 * m0 * (r * e / h) * (s * f / w) * ni + e3 * e1 * f * nw
            rf += max(2 * c2 * c1 * r * (c0 * s - 1), 1) * no
        elif dataflow == "is":
            ok = c1 * e1 * f1 * m1 < pes and c0 * s * short < 48 and c0 * m0 * r * s < 112
            gb = c1 * c0 * ((e1 * e0 - 1) * u + r) * ((f1 * f0 - 1) * u + s)
            gb += m1 * m0 * e1 * e0 * f1 * f0
            cycles = m0 * c2 * c0 * e3 * e0 * f3 * f0 * r * s
            dram = ni + e3 * f3 * nw + no
            glb = ni + max(2 * (c2 - 1), 1) * no
            noc = m1 * e3 * ((e0 * e1 - 1) * u + r) * f3 * ((f0 * f1 - 1) * u + s) * c
            noc += e3 * f3 * e1 * f1 * nw + max(c2 * (c1 - 1), 1) * no
            rf = m1 * m0 * ni + e3 * f3 * e1 * f1 * e0 * f0 * nw
            rf += max(2 * c2 * c1 * (c0 * r * s - 1), 1) * no
        elif dataflow == "ws":
            ok = c1 * r * s * m1 * e1 * f1 < pes and c0 < 48 and c0 * m0 < 112
            gb = c1 * c0 * ((e - 1) * u + r) * ((f - 1) * u + s) + m2 * m1 * m0 * e * f
            cycles = m3 * m2 * m0 * c2 * c0 * e0 * f0
            dram = m3 * ni + nw + no
            glb = m3 * m2 * ni + max(2 * (c2 - 1), 1) * no
            noc = m3 * m2 * m1 * ni * (r * e / h) * (s * f / w) + e1 * f1 * nw
            noc += max(c2 * (c1 * r * s - 1), 1) * no
            rf = m3 * m2 * m1 * m0 * ni * (r * e / h) * (s * f / w) + e1 * f1 * e0 * f0 * nw
            rf += max(2 * c2 * c1 * r * s * (c0 - 1), 1) * no
        else:
            ok = m1 * f1 * e1 * c1 < pes and c0 * s * short < 48 and m0 * r * s * c0 < 112
            gb = c0 * c1 * ((e1 * e0 - 1) * u + r) * ((f1 * f0 - 1) * u + s)
            gb += m2 * m1 * m0 * e1 * e0 * f1 * f0
            cycles = m3 * m2 * m0 * c0 * e3 * e0 * f3 * f0 * r * s
            dram = m3 * ni + e3 * f3 * nw + no
            glb = m3 * m2 * ni + no
            noc = m3 * m2 * m1 * e3 * ((e0 * e1 - 1) * u + r) * f3 * ((f0 * f1 - 1) * u + s) * c
            noc += e3 * f3 * e1 * f1 * nw + max(c1 - 1, 1) * no
            rf = m3 * m2 * m1 * m0 * ni * (r * e / h) * (s * f / w)
            rf += e3 * f3 * e1 * f1 * e0 * f0 * nw + max(2 * c1 * (c0 * r * s - 1), 1) * no
        if not ok or gb >= buffer:
            continue
        energy = layer.macs * unit_mac
        energy += bits / 16 * (200 * dram + 6 * glb + 2 * noc + rf)
        if best is None or energy * cycles < best[0] * best[1]:
            best = (energy, cycles)
    return best


def test_published_example():
    """1x1 24->72 at 16x16, 100 PEs, 8 bits: what the authors' simulator prints, mJ and ms."""
    layer = Layer.conv("a", "conv", 24, 72, 16)
    accelerator = Accelerator.from_yaml("nasa_f_published")
    expected = {"rs": 0.003760282, "is": 0.003699226, "ws": 0.003699226, "os": 0.003699226}
    for flow, energy in expected.items():
        table = layer_table(layer, flow, accelerator, 128, "edp")
        row = table.best(100, 131070)
        assert math.isclose(table.energy[row] / 1e9, energy, rel_tol=1e-6)
        assert table.cycles[row] * 1e3 / 250e6 == 0.018432


def random_layer(source):
    sizes = [1, 2, 4, 6, 8, 12]
    stride = source.choice([1, 1, 2])
    return Layer.conv(
        "x", source.choice(["conv", "shift", "adder"]), source.choice(sizes), source.choice(sizes),
        source.choice([1, 4, 6, 8]), source.choice([1, 3, 5]), stride,
    )  # fmt: skip


def compare(layer, flow, pes):
    accelerator = Accelerator.from_yaml("nasa_45nm")
    table = layer_table(layer, flow, accelerator, 256, "edp")
    row = table.best(pes, 131070)
    truth = published(
        layer, flow, pes, accelerator.operation_pj[layer.operator], accelerator.bits[layer.operator]
    )
    if truth is None:
        assert row is None
        return False
    found = float(table.energy[row]) * float(table.cycles[row])
    assert math.isclose(found, truth[0] * truth[1], rel_tol=1e-9), (layer, flow, pes)
    return True


def test_enumeration_equals_the_published_formulas_on_200_cases():
    source = random.Random(0)
    cases = feasible = 0
    while cases < 200:
        layer, pes = random_layer(source), source.choice([12, 60, 168])
        for flow in DATAFLOWS:
            feasible += compare(layer, flow, pes)
            cases += 1
    assert feasible > 60


@pytest.mark.stress
def test_enumeration_equals_the_published_formulas_on_2000_cases():
    source = random.Random(1)
    for _ in range(500):
        layer, pes = random_layer(source), source.choice([5, 12, 30, 60, 100, 168])
        for flow in DATAFLOWS:
            assert compare(layer, flow, pes) in (True, False)


def test_scale_sim_cycles():
    """18 x 18 x 64 input, 3 x 3 kernel, 64 filters, 16 x 16 array; SCALE-Sim 3.0.0's figures."""
    layer = Layer.conv("a", "conv", 64, 64, 18, kernel=3, padding=0)
    cycles = {d: systolic_cycles(layer, (16, 16), d) for d in ("ws", "os", "is")}
    assert cycles == {"ws": 43487, "os": 38783, "is": 63359}


def test_cycles_equal_scale_sim_on_its_own_runs():
    """What SCALE-Sim 3.0.0 printed for 120 layers (benchmarks/bench_peers.py wrote the file)."""
    with (Path(__file__).parent / "data" / "scalesim_cycles.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ("C", "M", "H", "W", "kernel", "stride")
    assert len({tuple(row[n] for n in names) for row in rows}) >= 100
    for row in rows:
        c, m, h, w, kernel, stride = (int(row[n]) for n in names)
        layer = Layer.conv("a", "conv", c, m, (h, w), kernel, stride, padding=0)
        array = int(row["rows"]), int(row["columns"])
        assert systolic_cycles(layer, array, row["dataflow"]) == int(row["cycles"]), row


def test_cycles_are_at_least_the_work_per_pe_and_buffers_fit():
    source = random.Random(2)
    for _ in range(60):
        layer, pes = random_layer(source), source.choice([20, 100])
        for flow in DATAFLOWS:
            found = tilings(layer, flow, Memories(pes, 5000))
            assert (found.cycles * found.processing_elements >= layer.macs).all()
            assert (found.buffer < 5000).all()
            assert (found.processing_elements < pes).all()
            bounds = found.factors
            product = np.prod([bounds[f"M{i}"] for i in range(4)], axis=0)
            assert (product == layer.filters).all()


def test_more_pes_or_buffer_never_hurt():
    source = random.Random(3)
    accelerator = Accelerator.from_yaml("nasa_45nm")
    for _ in range(30):
        layer = random_layer(source)
        for flow in DATAFLOWS:
            table = layer_table(layer, flow, accelerator, 256, "edp")
            values = []
            for pes, capacity in ((20, 500), (20, 5000), (60, 5000), (168, 131070)):
                row = table.best(pes, capacity)
                energy = math.inf if row is None else table.energy[row] * table.cycles[row]
                values.append(energy)
            assert values == sorted(values, reverse=True)


def test_energy_grows_with_the_cost_of_dram():
    layer = Layer.conv("a", "conv", 16, 32, 8, 3)
    energies = []
    for dram in (50.0, 200.0, 800.0):
        access = {"dram": dram, "global_buffer": 6.0, "noc": 2.0, "register_file": 1.0}
        table = layer_table(layer, "ws", Accelerator("a", access_pj=access), 256, "energy")
        energies.append(table.energy[table.best(168, 131070)])
    assert energies == sorted(energies)


def test_compat_charges_the_multiplier():
    shift = Layer.conv("a", "shift", 16, 32, 8, 3)
    ours, theirs = (
        layer_table(shift, "rs", Accelerator.from_yaml(name), 256, "edp").point(0).energy_pj
        for name in ("nasa_45nm", "nasa_f_published")
    )
    assert math.isclose(ours["operation"], shift.macs * 0.018)
    assert math.isclose(theirs["operation"], shift.macs * 0.2)
    assert ours["dram"] == theirs["dram"] > 0


def test_yaml_round_trip_and_errors(tmp_path):
    import yaml

    accelerator = Accelerator.from_yaml("nasa_plus")
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(accelerator.to_json()))
    assert Accelerator.from_yaml(file) == accelerator
    for text, word in (("name: x\ncolour: red", "colour"), ("- 1", "mapping"), ("a: [", "no YAML")):
        file.write_text(text)
        with pytest.raises(ValueError, match=word):
            Accelerator.from_yaml(file)
    with pytest.raises(ValueError, match="nasa_45nm"):
        Accelerator.from_yaml("unknown")
    with pytest.raises(ValueError, match="area=-1"):
        Accelerator("a", area=-1)
    with pytest.raises(ValueError, match="dataflow='xs'"):
        tilings(Layer.conv("a", "conv", 1, 1, 4), "xs", Memories(10, 100))
    with pytest.raises(ValueError, match="operator='mul'"):
        Layer.conv("a", "mul", 1, 1, 4)
