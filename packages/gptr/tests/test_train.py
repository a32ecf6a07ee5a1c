"""Generator, trainer, evaluation, bootstrap: oracles are pycocotools and equality of bits."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from gptr import GPTR, Trainer, compare, evaluate, generate
from gptr.detections import Detections
from gptr.evaluation.coco import evaluate_detections
from gptr.evaluation.errors import classify
from gptr.synth.generate import FAMILIES, generate_splits, save_coco
from gptr.train import FeatureCache, TrainingDivergedError

NANO = {
    "num_classes": 5,
    "d_model": 32,
    "num_heads": 4,
    "ffn": 32,
    "mode": "gptr",
    "group_count": 4,
}


def nano(**changes):
    torch.manual_seed(0)
    return GPTR.from_config("gptr-nano", **{**NANO, **changes})


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_reproducible_and_boxes_hold_ink(family):
    a, b = (generate(family, 6, 3, seed=4, size=128) for _ in range(2))
    for x, y in zip(a.records, b.records, strict=True):
        assert np.array_equal(x.load(), y.load())
        assert np.array_equal(x.xyxy, y.xyxy)
        for x0, y0, x1, y1 in x.xyxy.astype(int):
            inside = x.load()[y0:y1, x0:x1].astype(int)
            for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert np.abs(edge - np.median(edge, 0)).max() > 2 or len(np.unique(inside)) > 8
    c = generate(family, 6, 3, seed=5, size=128)
    assert not np.array_equal(a.records[0].load(), c.records[0].load())


def test_zipf_and_splits_without_a_shared_layout():
    splits = generate_splits(
        {"train": 40, "val": 40}, family="flowchart", classes=8, size=96, seed=1
    )
    counts = splits["train"].counts
    assert counts[0] > counts[4:].max()
    layouts = [{r.layout for r in s.records} for s in splits.values()]
    assert not layouts[0] & layouts[1]
    with pytest.raises(ValueError, match="family='maps'"):
        generate("maps")
    with pytest.raises(ValueError, match="has 16"):
        generate("flowchart", 17, 1)


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("extra", [{}, {"decoder_layers": 1, "denoising": 2, "dropout": 0.1}])
def test_resume_is_bit_exact_and_seeds_repeat(tmp_path, flowcharts, extra):
    options = {"epochs": 2, "batch_size": 3, "ema": 0.9, "seed": 5, "repeat": 0.5}
    runs = []
    for name in ("a", "b"):
        model = nano(**extra)
        Trainer(model, flowcharts, out=tmp_path / name, **options).fit()
        runs.append(weights(model))
    model = nano(**extra)
    Trainer(model, flowcharts, out=tmp_path / "c", **options).fit(until=3)
    again = nano(**extra)
    trainer = Trainer(again, flowcharts, out=tmp_path / "c", **options)
    trainer.fit(resume=True)
    for other in (runs[1], weights(again)):
        assert all(torch.equal(runs[0][k], other[k]) for k in runs[0])
    rows = [
        json.loads(line) for line in (tmp_path / "c" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [r["epoch"] for r in rows] == [1, 2]
    loaded = GPTR.from_pretrained(tmp_path / "c")
    assert all(torch.equal(loaded.state_dict()[k], trainer.ema[k]) for k in trainer.ema)


def test_accumulated_parts_are_one_large_batch(flowcharts):
    """Also for parts with unequal numbers of objects; batch norm is frozen with the backbone."""
    gradients = []
    for options in ({"batch_size": 6}, {"batch_size": 2, "accumulate": 3}):
        model = nano(mode="bias", freeze_backbone=True)
        cache = FeatureCache(model, flowcharts)  # no flips: they are drawn part by part
        Trainer(model, flowcharts, cache=cache, epochs=1, clip=1e9, **options).train_step()
        gradients.append({k: p.grad for k, p in model.named_parameters() if p.requires_grad})
    largest = max(float(g.abs().max()) for g in gradients[0].values())
    assert largest > 1e-3
    for name, gradient in gradients[0].items():
        assert float((gradient - gradients[1][name]).abs().max()) < 1e-5 * largest, name


def test_autocast_trains_and_keeps_float32_weights(flowcharts):
    model = nano(mode="bias", laws=("similarity", "proximity"))
    plain = nano(mode="bias", laws=("similarity", "proximity"))
    losses = [
        Trainer(m, flowcharts, epochs=4, batch_size=5, amp=amp).fit()[-1]["loss"]
        for m, amp in ((model, True), (plain, False))
    ]
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    assert not torch.equal(next(iter(model.parameters())), next(iter(plain.parameters())))


def test_other_options_do_not_resume(tmp_path, flowcharts):
    Trainer(nano(), flowcharts, out=tmp_path, epochs=1, batch_size=8).fit()
    with pytest.raises(ValueError, match="other options"):
        Trainer(nano(), flowcharts, out=tmp_path, epochs=2, batch_size=8).fit(resume=True)


def test_nan_loss_stops_and_saves_the_batch(tmp_path, flowcharts):
    model = nano()
    with torch.no_grad():
        model.token_class.weight.fill_(float("nan"))
    trainer = Trainer(model, flowcharts, out=tmp_path, epochs=1, batch_size=2)
    with pytest.raises(TrainingDivergedError, match="learning_rate"):
        trainer.fit()
    saved = torch.load(next(tmp_path.glob("diverged_*.pt")), weights_only=True)
    assert len(saved["indices"]) == 2


def test_training_learns_and_cached_features_are_the_live_ones():
    data = generate("flowchart", 2, 12, seed=1, size=64, objects=(1, 2))
    model = nano(num_classes=2, freeze_backbone=True)
    cache = FeatureCache(model, data, flip=True)
    model.eval()
    with torch.no_grad():
        live = model([data.records[3].load()])
        kept = model.detect(cache.batch([3]))
    assert torch.allclose(live.pred_logits, kept.pred_logits, atol=1e-5)
    trainer = Trainer(model, data, cache=cache, epochs=20, batch_size=6, learning_rate=3e-3)
    history = trainer.fit()
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


def random_detections(data, seed, jitter=4.0):
    rng = np.random.default_rng(seed)
    found = []
    for r in data.records:
        boxes = np.concatenate((r.xyxy, r.xyxy[:2])) + rng.normal(
            0, jitter, (len(r.xyxy) + len(r.xyxy[:2]), 4)
        )
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = np.concatenate((r.labels, r.labels[:2]))
        swap = rng.random(len(labels)) < 0.2
        labels = np.where(swap, rng.integers(0, len(data.class_names), len(labels)), labels)
        found.append(Detections(boxes, rng.random(len(labels)), labels, r.size, data.class_names))
    return found


def test_figures_equal_pycocotools_and_the_match_table():
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    data = generate("flowchart", 6, 25, seed=2, size=160)
    found = random_detections(data, 0)
    ours = evaluate_detections(data, found)
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i + 1, "width": 160, "height": 160} for i in range(25)],
        "categories": [{"id": k + 1} for k in range(6)],
        "annotations": [
            {"id": n + 1, "image_id": i + 1, "category_id": int(k) + 1, "iscrowd": 0,
             "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
            for n, (i, (x0, y0, x1, y1), k) in enumerate(
                (i, b, k) for i, r in enumerate(data.records)
                for b, k in zip(r.xyxy.tolist(), r.labels, strict=True))
        ],
    }  # fmt: skip
    truth.createIndex()
    rows = [
        {**row, "category_id": row["category_id"] + 1}
        for i, d in enumerate(found)
        for row in d.to_coco(i + 1)
    ]
    peer = COCOeval(truth, truth.loadRes(rows), "bbox")
    peer.evaluate()
    peer.accumulate()
    peer.summarize()
    assert np.allclose(list(ours.stats.values()), peer.stats, atol=1e-12)
    table = ours.table.average_precision()
    assert np.nanmean(table) == pytest.approx(peer.stats[0], abs=1e-12)
    assert np.nanmean(table[:, 0]) == pytest.approx(peer.stats[1], abs=1e-12)


def test_absent_classes_do_not_count():
    data = generate("flowchart", 6, 4, seed=2, size=128, objects=(1, 2))
    found = [
        Detections(r.xyxy, np.ones(len(r.labels)), r.labels, r.size, data.class_names)
        for r in data.records
    ]
    result = evaluate_detections(data, found)
    assert result.seen == len({int(k) for r in data.records for k in r.labels}) < 6
    assert result.stats["AP"] == pytest.approx(1)
    assert sum(v is None for v in result.class_ap) == 6 - result.seen


def test_no_image_is_left_out(flowcharts):
    model = nano()
    assert evaluate(model, flowcharts, batch_size=7).images == 10
    empty = evaluate_detections(
        flowcharts, [Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), (96, 96))] * 10
    )
    assert empty.stats["AP"] == 0
    assert empty.errors["missed"] == int(flowcharts.counts.sum())


def test_kinds_of_errors():
    truth, labels = np.array([[0.0, 0, 10, 10], [50, 50, 60, 60]]), np.array([0, 1])
    boxes = np.array(
        [
            [0, 0, 10, 10],
            [0, 0, 10, 9],
            [50, 50, 60, 60],
            [5, 0, 15, 10],
            [80, 80, 90, 90],
            [55, 50, 65, 60],
        ]
    )
    found = Detections(
        boxes.astype(float), np.linspace(0.9, 0.5, 6), np.array([0, 0, 0, 0, 0, 0]), (100, 100)
    )
    kinds, taken = classify(truth, labels, found, 0.4)
    assert kinds == ["correct", "duplicate", "class", "location", "background", "both"]
    assert taken.tolist() == [True, False]


def test_bootstrap_tells_better_from_same():
    data = generate("flowchart", 4, 30, seed=2, size=128)
    good, bad, same = (
        evaluate_detections(data, random_detections(data, s, j)).table
        for s, j in ((0, 1.0), (1, 9.0), (2, 1.0))
    )
    assert compare(bad, good, resamples=100).p < 0.05
    assert compare(good, good, resamples=100).p == 1.0
    null = compare(good, same, resamples=100)
    assert null.low < 0 < null.high
    with pytest.raises(ValueError, match="figure='F1'"):
        compare(good, bad, figure="F1")


DDP = """
import sys, torch
torch.set_num_threads(1)
from gptr import GPTR, Trainer, generate
data = generate("flowchart", 3, 9, seed=1, size=64, objects=(1, 2))
torch.manual_seed(0)
model = GPTR.from_config("gptr-nano", num_classes=3, d_model=16, ffn=16)
trainer = Trainer(model, data, data, out=sys.argv[1], epochs=1, batch_size=2)
trainer.fit()
found = trainer.evaluate()
total = sum(float(p.double().sum()) for p in model.parameters() if p.requires_grad)
line = f"{total!r} {found.images} {found.stats['AP']!r}"
open(f"{sys.argv[1]}/rank{trainer.rank}", "w").write(line)
torch.distributed.destroy_process_group()
"""


def test_two_processes_agree_and_evaluate_every_image(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(DDP)
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
               "--master-port=29517", str(script), str(out)]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    texts = {(out / f"rank{r}").read_text() for r in (0, 1)}
    assert len(texts) == 1
    assert texts.pop().split()[1] == "9"


def test_saved_sets_train_through_files(tmp_path, flowcharts):
    from gptr import COCODataset

    data = COCODataset(save_coco(flowcharts, tmp_path, "train"))
    model = nano()
    trainer = Trainer(model, data, epochs=1, batch_size=5)
    trainer.fit()
    assert model.config.class_names == flowcharts.class_names
    assert trainer.step == 2


@pytest.mark.peer
def test_a_timm_backbone_trains_and_comes_back(tmp_path, flowcharts):
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet18", pretrained=False, features_only=True)
    file = tmp_path / "resnet18.pth"
    torch.save(net.state_dict(), file)
    model = nano(
        backbone="timm:resnet18", weights=str(file), strides=(8, 32), freeze_backbone=False
    )
    assert torch.equal(model.backbone.net.conv1.weight, net.conv1.weight)
    Trainer(model, flowcharts, epochs=1, batch_size=5).fit()
    assert not torch.equal(model.backbone.net.conv1.weight, net.conv1.weight)
    file.unlink()  # a saved model needs the file no more
    model.save_pretrained(tmp_path / "saved")
    again = GPTR.from_pretrained(tmp_path / "saved")
    image = flowcharts.records[0].load()
    found, back = (m.eval().predict(image, threshold=0.0) for m in (model, again))
    assert np.array_equal(found.scores, back.scores)
    with pytest.raises(ValueError, match=r"strides=\(4, 64\)|allowed are ascending strides"):
        nano(backbone="timm:resnet18", strides=(4, 64))
    with pytest.raises(ValueError, match="timm:nothing"):
        nano(backbone="timm:nothing")
