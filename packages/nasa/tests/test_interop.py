import csv
import io
import json

import pytest
import torch
import yaml
from nasa.conversion import WithBias, convert, trace_workload
from nasa.hw import Accelerator, Layer, Workload
from nasa.hw import map as map_workload
from nasa.interop import export, rank_agreement, read_lookup_table, to_scalesim_layout
from nasa.nn import AdderConv2d, ShiftConv2d
from torch import nn

WORK = Workload(
    "w", [Layer.conv("a", "conv", 3, 8, 9, 3, 2), Layer.conv("b", "shift", 8, 8, 5, 5, 1, 8)]
)


def test_scalesim_rows_have_the_padded_input():
    rows = list(csv.reader(io.StringIO(export(WORK, "scalesim"))))
    assert rows[1][:8] == ["a", "11", "11", "3", "3", "3", "8", "2"]
    for row, layer in zip(rows[1:], WORK, strict=True):
        height, kernel, stride = int(row[1]), int(row[3]), int(row[7])
        assert (height - kernel) // stride + 1 == layer.out[0]


def test_zigzag_and_timeloop_bounds_multiply_to_the_macs():
    for entry, layer in zip(yaml.safe_load(export(WORK, "zigzag")), WORK, strict=True):
        assert torch.tensor(entry["loop_sizes"]).prod().item() == layer.macs
        assert len(entry["loop_dims"]) == len(entry["loop_sizes"])
    for document, layer in zip(yaml.safe_load_all(export(WORK, "timeloop")), WORK, strict=True):
        instance = document["problem"]["instance"]
        assert torch.tensor(list(instance.values())).prod().item() == layer.macs


def test_json_round_trip_and_unknown_format():
    assert Workload.from_json(json.loads(export(WORK, "json"))).layers == WORK.layers
    with pytest.raises(ValueError, match="format='onnx'"):
        export(WORK, "onnx")


def test_lookup_tables(tmp_path):
    file = tmp_path / "t"
    file.write_text('{"a": 1.5, "b": {"latency": 2, "energy": 3}}')
    assert read_lookup_table(file) == {"a": {"latency": 1.5}, "b": {"latency": 2, "energy": 3}}
    file.write_text("block,latency,energy\nx,1,2\ny,3,4\n")
    assert read_lookup_table(file)["y"] == {"latency": 3.0, "energy": 4.0}
    for text, word in (
        ("", "header"),
        ("{", "no JSON"),
        ('{"a": "fast"}', "not numbers"),
        ("block,ms\nx,nan\n", "NaN"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=word):
            read_lookup_table(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no text"):
        read_lookup_table(file)


def test_imported_table_is_ranked_against_the_mapper(tmp_path):
    machine, ours = Accelerator.from_yaml("nasa_45nm"), {}
    shapes = ((8, 8, 4, 1), (16, 8, 8, 1), (16, 32, 8, 3), (64, 64, 8, 3), (3, 16, 16, 3))
    for c, f, side, k in shapes:
        result = map_workload(Workload("w", [Layer.conv("a", "conv", c, f, side, k)]), machine)
        ours[f"{c}-{f}-{side}-{k}"] = {"energy": result.energy_mj, "latency": result.interval_ms}
    file = tmp_path / "t.csv"
    lines = [f"{n},{3 * cost['latency'] ** 0.5},{-cost['energy']}" for n, cost in ours.items()]
    file.write_text("\n".join(["block,latency,energy", *lines, "unknown,1,1"]) + "\n")
    table = read_lookup_table(file)
    # a growing function keeps the ranks, a falling one turns them
    expected = {"spearman": 1.0, "kendall": 1.0, "blocks": 5}
    assert rank_agreement(table, ours, "latency") == expected
    assert rank_agreement(table, ours, "energy")["spearman"] == -1.0
    with pytest.raises(ValueError, match="cost='power': the tables share 0 blocks"):
        rank_agreement(table, ours, "power")


def test_scalesim_layout_has_a_row_per_layer():
    rows = to_scalesim_layout(WORK).splitlines()
    assert [row.split(",")[0] for row in rows] == ["Layer name", "a", "b"]
    assert {row.count(",") for row in rows} == {21}


def test_convert_keeps_shapes_biases_and_weights():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, groups=4), nn.ReLU(), nn.Conv2d(8, 4, 1, bias=False),
    )  # fmt: skip
    x = torch.randn(2, 3, 9, 9)
    shifted = convert(net, "shift", weight_bits=8)
    assert isinstance(shifted[0], nn.Conv2d)
    assert isinstance(shifted[3], WithBias)
    assert isinstance(shifted[5], ShiftConv2d)
    assert torch.equal(shifted[5].weight, net[5].weight)
    assert shifted(x).shape == net(x).shape
    assert type(net[5]) is nn.Conv2d  # the original stays
    mixed = convert(net, lambda name, layer: "adder" if layer.kernel_size == (1, 1) else "conv")
    assert isinstance(mixed[5], AdderConv2d)
    work = trace_workload(mixed, x)
    assert work.macs()["adder"] == 8 * 4 * 4 * 4
    with pytest.raises(ValueError, match="'max' for '0'"):
        convert(net, lambda name, layer: "max")
    with pytest.raises(ValueError, match="padding='same'"):
        convert(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 3, padding="same")), "shift")
