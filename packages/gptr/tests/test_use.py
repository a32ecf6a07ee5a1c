"""Explain, connectors, export, command line."""

import json

import numpy as np
import pytest
import torch
from gptr import GPTR
from gptr.cli import main
from gptr.config import GPTRConfig
from gptr.connectors import find_connectors, to_graph
from gptr.detections import Detections
from gptr.explain import explain, model_group_distances
from gptr.export import export_onnx
from gptr.pages import write_times
from gptr.reproduce import BASE, run_arms, write_reproduction
from gptr.synth.generate import generate, generate_splits, save_coco


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return stop.value.code


def page(folder, *figures):
    """Return the text of a report whose figures exist and are named in it."""
    text = (folder / "report.html").read_text()
    assert all((folder / f).stat().st_size > 1000 and f in text for f in figures)
    return text


def test_explain_with_and_without_a_model(drawing):
    alone = explain(drawing)
    assert alone.matrices["similarity"].shape == (130, 130)
    assert min(alone.distances.values()) >= 0.2
    torch.manual_seed(0)
    model = GPTR.from_config("gptr-nano", num_classes=3, mode="gptr", group_count=8).eval()
    found = explain(drawing, model)
    assert set(found.weights) == {"similarity", "proximity", "smoothness"}
    assert found.heat("proximity", 2, 3).max() == pytest.approx(1)
    # living graph at initialisation
    assert min(model_group_distances(model, [drawing]).values()) >= 0.2


def test_connectors_of_generated_flowcharts():
    data = generate("flowchart", 6, 12, seed=8, size=224, objects=(3, 5))
    hits = found_count = wanted_count = 0
    for r in data.records:
        found = {
            (min(c.start, c.end), max(c.start, c.end)) for c in find_connectors(r.load(), r.xyxy)
        }
        wanted = {(min(a, b), max(a, b)) for a, b, _ in r.connectors}
        hits += len(found & wanted)
        found_count += len(found)
        wanted_count += len(wanted)
    assert 2 * hits / (found_count + wanted_count) >= 0.5


def test_a_clean_arrow_is_found_with_its_direction():
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (200, 80), "white")
    draw = ImageDraw.Draw(image)
    boxes = np.array([[10.0, 20, 60, 60], [140, 20, 190, 60]])
    for b in boxes:
        draw.rectangle([float(v) for v in b], outline=(0, 0, 0), width=2)
    draw.line((62, 40, 137, 40), fill=(0, 0, 0), width=2)
    draw.polygon([(138, 40), (128, 34), (128, 46)], fill=(0, 0, 0))
    (c,) = find_connectors(np.asarray(image), boxes)
    assert (c.start, c.end, c.directed) == (0, 1, True)
    d = Detections(boxes, np.ones(2), np.array([0, 1]), (80, 200), ("a", "b"))
    assert list(to_graph(d, [c]).edges) == [(0, 1)]


def test_onnx_agrees(tmp_path):
    torch.manual_seed(0)
    for changes in ({}, {"mode": "gptr"}, {"decoder_layers": 1, "queries": 10}):
        model = GPTR.from_config("gptr-nano", num_classes=3, d_model=32, ffn=32, **changes)
        result = export_onnx(model, tmp_path / "m.onnx", (64, 96), repeats=1)
        assert max(result.logits_error, result.boxes_error) <= 1e-4
        assert result.path.stat().st_size > 1000
    with pytest.raises(ValueError, match="multiples of 32"):
        export_onnx(model, tmp_path / "n.onnx", (60, 96))


def test_the_command_line_from_drawing_to_graph(tmp_path, capsys, flowcharts):
    data = tmp_path / "data"
    assert run("generate", "--family", "flowchart", "--classes", 3, "--images", 8, "--val", 4,
               "--size", 96, "--out", data) == 0  # fmt: skip
    page(data, "samples.png", "classes.png")
    assert run("doctor", data / "train.json", "--other", data / "val.json", "--json") == 0
    train = ["train", "--data", data, "--preset", "nano", "--epochs", 1, "--batch-size", 4]
    for name, laws in (("a", "sim,prox"), ("b", "")):
        assert (
            run(*train, "--laws", laws, "--out", tmp_path / name, "--augment", "--copy-paste") == 0
        )
        assert (tmp_path / name / "report.html").is_file()
    assert run("eval", tmp_path / "a", "--data", data, "--out", tmp_path / "e") == 0
    capsys.readouterr()
    assert run("eval", tmp_path / "a", "--data", data, "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 4
    image = data / "images" / "val_00000.png"
    assert run("predict", tmp_path / "a", image, "--format", "coco,svg,html,drawio", "--threshold",
               0.0, "--connectors", "--out", tmp_path / "p") == 0  # fmt: skip
    assert {p.name for p in (tmp_path / "p").iterdir()} == {
        "detections.json", "val_00000.svg", "val_00000.html", "val_00000.drawio"}  # fmt: skip
    assert run("explain", image, "--run", tmp_path / "a", "--out", tmp_path / "x") == 0
    assert run("compare", tmp_path / "a", tmp_path / "b", "--data", data, "--resamples", 10,
               "--out", tmp_path / "d") == 0  # fmt: skip
    page(tmp_path / "d", "differences.png")
    assert run("export", tmp_path / "a", "--onnx", tmp_path / "m.onnx", "--size", 64) == 0
    assert run("convert", data / "val.json", "--from-format", "coco", "--out", tmp_path / "c") == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["eval", "nowhere", "--data", "x"], "config.json"),
        (["train", "--data", "nowhere", "--out", "o"], "nowhere"),
        (["generate", "--family", "maps", "--out", "o"], "maps"),
        (["doctor", "none.json"], "none.json"),
        (["reproduce", "bpmn", "--out", "o"], "--data"),
        (["reproduce", "mini", "--out", "o", "--size", "5"], "size=5: must lie in [64, 4096]"),
        (["reproduce", "mini", "--out", "o", "--only", "bias"], "only='bias': allowed are base,"),
        (["explain", "none.png", "--out", "o"], "none.png"),
        (["convert", "nowhere", "--from-format", "bpmn", "--out", "o"], "nowhere"),
        (["demo"], "out"),
    ],
)
def test_bad_input_gives_one_line(arguments, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert word in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_doctor_says_no(tmp_path, flowcharts):
    path = save_coco(flowcharts, tmp_path, "train")
    data = json.loads(path.read_text())
    data["annotations"][0]["bbox"][2] = -4
    path.write_text(json.dumps(data))
    assert run("doctor", path, "--out", tmp_path / "page") == 3
    assert "box-negative" in page(tmp_path / "page", "findings.png")


def test_reproduce_compares_arms_of_one_budget(tmp_path):
    splits = generate_splits({"train": 6, "val": 4}, family="parts", classes=2, size=64)
    config = GPTRConfig.preset("gptr-nano", d_model=16, ffn=16, freeze_backbone=True)
    result = run_arms(
        "small", splits["train"], splits["val"], BASE, steps=2, seeds=(0, 1), config=config,
        resamples=10, batch_size=3,
    )  # fmt: skip
    assert [(r.arm, r.seed, r.steps) for r in result.runs] == [
        ("base", 0, 2), ("gptr", 0, 2), ("base", 1, 2), ("gptr", 1, 2)]  # fmt: skip
    assert [c.figure for c in result.comparisons["gptr"]] == ["AP", "AP50"]
    write_reproduction(result, splits["val"], tmp_path)
    assert "base" in page(tmp_path, "ap.png", "training.png", "detections.png")
    assert json.loads((tmp_path / "reproduction.json").read_text())["name"] == "small"


def test_bench_writes_a_page(tmp_path):
    write_times([{"what": "matcher", "ms": 1.5}], tmp_path)
    assert "matcher" in page(tmp_path, "times.png")


def test_law_weights_over_training_are_recorded(tmp_path, flowcharts):
    from gptr import Trainer, figures

    model = GPTR.from_config("gptr-nano", num_classes=5, d_model=16, ffn=16)
    rows = Trainer(model, flowcharts, epochs=2, batch_size=5).fit()
    assert rows[0]["law_weights"] != rows[1]["law_weights"]
    figures.save(figures.training_curves({"a": rows}), tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 1000
