"""Accuracy in equal CPU time: with laws, without, and transformers' RT-DETRv2 of equal size.

RT-DETRv2 starts at random numbers, ours on the packaged EfficientNet-Lite0, frozen: no weights of
the peer come with a package.
"""

import time

import numpy as np
import torch
from common import arguments, goal, write
from gptr.detections import Detections
from gptr.evaluation.coco import evaluate_detections
from gptr.reproduce import mini_splits, reproduce
from gptr.train import FeatureCache


def peer(classes: int):
    """Return RT-DETRv2 with about the parameters of gptr-tiny."""
    from transformers import RTDetrResNetConfig, RTDetrV2Config, RTDetrV2ForObjectDetection

    backbone = RTDetrResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128, 160], depths=[1, 1, 1, 1],
        layer_type="basic", out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = RTDetrV2Config(
        backbone_config=backbone, encoder_in_channels=[64, 128, 160], encoder_hidden_dim=96,
        encoder_ffn_dim=192, d_model=96, decoder_in_channels=[96, 96, 96], decoder_layers=3,
        decoder_ffn_dim=192, num_queries=100, num_denoising=0, num_labels=classes,
        encoder_attention_heads=4, decoder_attention_heads=4, use_pretrained_backbone=False,
    )  # fmt: skip
    return RTDetrV2ForObjectDetection(config)


def batch(data, chosen, flips) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Return images in 0..1 and labels as the peer wants them."""
    images, targets = [], []
    for i, flip in zip(chosen, flips, strict=True):
        record = data.records[i]
        image, boxes = record.load(), record.xyxy.copy()
        height, width = image.shape[:2]
        if flip:
            image = image[:, ::-1]
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        images.append(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1) / 255)
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)
        xyxy = torch.from_numpy(boxes).float() / scale
        centres = torch.cat(((xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]), 1)
        targets.append({"class_labels": torch.from_numpy(record.labels).long(), "boxes": centres})
    return torch.stack(images), targets


def train_peer(model, data, seconds: float, rate: float, seed: int) -> int:
    """Train until the CPU seconds are spent; returns the steps."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-4)
    rng = np.random.default_rng(seed)
    steps, start = 0, time.process_time()
    model.train()
    while (spent := time.process_time() - start) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (steps + 1) / 20) * max(0.05, 1 - spent / seconds)
        images, targets = batch(
            data, rng.choice(len(data), 16, replace=False), rng.random(16) < 0.5
        )
        optimizer.zero_grad()
        model(pixel_values=images, labels=targets).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        steps += 1
    return steps


@torch.no_grad()
def detect_peer(model, data) -> list[Detections]:
    """Return the peer's best 100 (class, query) pairs per image."""
    model.eval()
    found = []
    for i in range(len(data)):
        images, _ = batch(data, [i], [False])
        out = model(pixel_values=images)
        scores, place = out.logits[0].sigmoid().flatten().topk(100)
        query, label = place // out.logits.shape[-1], place % out.logits.shape[-1]
        centre, size = out.pred_boxes[0][query].split(2, -1)
        height, width = images.shape[-2:]
        corners = torch.cat((centre - size / 2, centre + size / 2), 1)
        xyxy = corners * torch.tensor([width, height, width, height])
        found.append(Detections(xyxy.numpy(), scores.numpy(), label.numpy(), (height, width)))
    return found


def figures(stats: dict[str, float]) -> list[float]:
    """Return AP and AP50, rounded."""
    return [round(stats[k], 3) for k in ("AP", "AP50")]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    torch.set_num_threads(1)

    def say(text: str) -> None:
        print(text, flush=True)

    mini = reproduce(
        "mini", seeds=range(options.seeds), steps=options.steps, equal_cpu=True, say=say
    )
    gain, tail = mini.comparisons["gptr"]
    splits = mini_splits()
    data, val = splits["train"], splits["val"]
    start = time.process_time()
    FeatureCache(mini.models["gptr"], data, flip=True)
    prepared = time.process_time() - start
    rows = []
    for seed in range(options.seeds):
        runs = {run.arm: run for run in mini.runs if run.seed == seed}
        torch.manual_seed(seed)
        theirs = peer(60)
        spent = runs["gptr"].cpu_seconds + prepared
        steps = train_peer(theirs, data, spent, 1e-3, seed)
        stats = evaluate_detections(val, detect_peer(theirs, val)).stats
        for arm, run in runs.items():
            rows.append(
                [seed, arm, run.steps, *figures(run.evaluation.stats), round(run.cpu_seconds)]
            )
        rows.append([seed, "RT-DETRv2", steps, *figures(stats), round(spent)])
        say(str(rows[-1]))
    sizes = [sum(p.numel() for p in m.parameters()) / 1e6 for m in (mini.models["gptr"], theirs)]
    means = {
        arm: sum(r[3] for r in rows if r[1] == arm) / options.seeds for arm in ("gptr", "RT-DETRv2")
    }
    goals = [
        goal(
            "AP over the base, equal CPU seconds",
            ">= +0.03, paired bootstrap p < .05",
            f"{gain.difference:+.3f} (95 % {gain.low:+.3f} to {gain.high:+.3f}, p {gain.p:.3f}; "
            f"tail AP50 {tail.difference:+.3f}, p {tail.p:.3f})",
            gain.difference >= 0.03 and gain.p < 0.05,
            f"{options.seeds} seeds; the base took {options.steps} steps, gptr "
            + ", ".join(str(r[2]) for r in rows if r[1] == "gptr"),
        ),
        goal(
            "AP beside transformers' RT-DETRv2 in the same CPU time",
            ">= the peer's",
            f"{means['gptr']:.3f} against {means['RT-DETRv2']:.3f}",
            means["gptr"] >= means["RT-DETRv2"],
            f"{sizes[0]:.1f}M and {sizes[1]:.1f}M parameters; the peer starts at random numbers",
        ),
    ]
    columns = ["seed", "model", "steps", "AP", "AP50", "CPU-s"]
    tables = [{"title": "mini set, equal CPU time", "columns": columns, "rows": rows}]
    write(options.out, __file__, "Accuracy in equal CPU time", goals, tables)


if __name__ == "__main__":
    main()
