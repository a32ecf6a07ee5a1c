"""Matcher, descriptors, encoder layers and ONNX Runtime, each against a named peer."""

import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from common import arguments, goal, write
from gptr.export import export_onnx
from gptr.gestalt.descriptors import describe_op
from gptr.matching import HungarianMatcher
from gptr.model.gptr import GPTR
from gptr.synth.generate import generate
from gptr.timing import encoder_times, matcher_problem


def interleaved(ours, theirs, repeats: int) -> tuple[float, float, float, float]:
    """Return median ms of both, median ratio theirs / ours, spread of the ratio."""
    ours(), theirs()
    a, b = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        ours()
        middle = time.perf_counter()
        theirs()
        a.append(1000 * (middle - start))
        b.append(1000 * (time.perf_counter() - middle))
    ratios = [y / x for x, y in zip(a, b, strict=True)]
    return (
        statistics.median(a),
        statistics.median(b),
        statistics.median(ratios),
        max(ratios) - min(ratios),
    )


def opencv_descriptors(image: np.ndarray, stride: int) -> tuple[np.ndarray, ...]:
    """Colour moments, Canny borders and structure tensor with OpenCV and NumPy."""
    H, W = image.shape[:2]
    edges = cv2.Canny(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 60, 160)
    cells = image.reshape(H // stride, stride, W // stride, stride, 3).astype(np.float32) / 255
    mean = cells.mean((1, 3))
    d = cells - mean[:, None, :, None]
    colour = np.concatenate((mean, d.std((1, 3)), np.cbrt((d**3).mean((1, 3)))), -1)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    gx, gy = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    box = (H // stride, stride, W // stride, stride)
    xx, yy, xy = ((p).reshape(box).sum((1, 3)) for p in (gx * gx, gy * gy, gx * gy))
    theta = np.arctan2(2 * xy, xx - yy)
    blocks = edges.reshape(box).transpose(0, 2, 1, 3)
    borders = np.stack((blocks[:, :, 0], blocks[:, :, -1], blocks[:, :, :, 0], blocks[:, :, :, -1]))
    return colour, theta, borders


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--skip-onnx", action="store_true", help="leave the 512 px export out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher

    logits, boxes, targets = matcher_problem()
    theirs = DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
    hf = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]
    ours = HungarianMatcher()
    outputs = {"logits": logits, "pred_boxes": boxes}
    equal = all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
        for a, b in zip(ours(logits, boxes, targets), theirs(outputs, hf), strict=True)
    )
    match = interleaved(
        lambda: ours(logits, boxes, targets), lambda: theirs(outputs, hf), options.repeats
    )
    drawings = generate("mixed", 20, 8, size=224, seed=5)
    images = [r.load() for r in drawings.records]
    tensors = [torch.from_numpy(i)[None] for i in images]
    describe = interleaved(
        lambda: [describe_op(t, 16) for t in tensors],
        lambda: [opencv_descriptors(i, 16) for i in images],
        options.repeats,
    )
    encoder = encoder_times((196, 1024, 4096), options.repeats)
    at1024 = {r["mode"]: r for r in encoder if r["nodes"] == 1024}
    goals = [
        goal(
            "transformers' matcher / ours, B=16 Q=300 T=50 C=577",
            ">= 25x, identical assignments",
            f"{match[2]:.1f}x (spread {match[3]:.1f}), {'identical' if equal else 'DIFFERENT'}",
            match[2] >= 25 and equal,
            f"{match[1]:.0f} ms / {match[0]:.1f} ms, one thread",
        ),
        goal(
            "OpenCV + NumPy / native descriptors, 224 px",
            ">= 10x",
            f"{describe[2]:.1f}x (spread {describe[3]:.1f})",
            describe[2] >= 10,
            f"8 drawings: {describe[1]:.1f} ms / {describe[0]:.1f} ms, one thread; OpenCV's Canny "
            "is hand-vectorised",
        ),
        goal(
            "encoder layer with laws / without, 1,024 tokens",
            "<= 1.15",
            f"bias {at1024['bias']['ratio']:.2f} (spread {at1024['bias']['spread']:.2f}), messages "
            f"{at1024['gptr']['ratio']:.2f}; similarity + proximity alone "
            f"{at1024['bias: sim, prox']['ratio']:.2f}",
            at1024["bias"]["ratio"] <= 1.15,
            "d 256, 8 heads, FFN 1024, forward, one thread",
        ),
    ]
    if not options.skip_onnx:
        torch.set_num_threads(2)
        for strides, tokens in (((8, 16), "5,120"), ((16, 32), "1,280")):
            model = GPTR.from_config("gptr-tiny", num_classes=60, strides=strides)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "m.onnx"
                exported = export_onnx(model, path, (512, 512), repeats=options.repeats)
            worst = max(exported.logits_error, exported.boxes_error)
            goals.append(
                goal(
                    f"512 px through ONNX Runtime, strides {strides[0]} and {strides[1]}, "
                    "2 threads",
                    "<= 150 ms, outputs within 1e-4",
                    f"{exported.onnx_ms:.0f} ms, difference {worst:.1e}",
                    exported.onnx_ms <= 150 and worst <= 1e-4,
                    f"gptr-tiny, 60 classes, {tokens} tokens",
                )
            )
    rows = [
        [r["what"], round(r["ms"], 2), round(r["ratio"], 2), round(r["spread"], 2)] for r in encoder
    ]
    tables = [
        {
            "title": "Encoder layers",
            "columns": ["layer", "ms", "over plain", "spread"],
            "rows": rows,
        }
    ]
    write(options.out, __file__, "Speed against peers", goals, tables)


if __name__ == "__main__":
    main()
