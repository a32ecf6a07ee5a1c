"""On a GPU: encoder layers with and without laws, and training steps behind the backbone."""

import statistics
import time
from functools import partial

import torch
from common import arguments, goal, write
from gptr.gestalt.laws import LAWS
from gptr.model.encoder import EncoderLayer
from gptr.model.gptr import GPTR
from gptr.timing import encoder_problem


def timed(run, device: torch.device, repeats: int) -> float:
    """Return the median time in milliseconds."""
    times = []
    for i in range(repeats + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if i > 1:
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def step(layer, x, position, tokens, device) -> None:
    with torch.autocast(device.type, torch.bfloat16):
        layer(x, position, tokens).float().sum().backward()


def train(model, features, targets, device) -> None:
    with torch.autocast(device.type, torch.bfloat16):
        model.detect(features, targets).loss.backward()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench_gpu: left out, there is no CUDA device")
        return
    rows, goals, ratio = [], [], float("nan")
    for nodes in (1024, 4096) if device.type == "cuda" else (256,):
        x, position, tokens = encoder_problem(nodes, 256)
        x, position = x.to(device), position.to(device)
        tokens.levels = [tokens.levels[0].to(device)]
        tokens.places, tokens.valid = tokens.places.to(device), tokens.valid.to(device)
        plain = None
        for mode, laws in (("none", LAWS), ("bias", LAWS[:2]), ("bias", LAWS), ("gptr", LAWS)):
            layer = EncoderLayer(256, 8, 1024, 0.0, mode, laws, 0).to(device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            run = partial(step, layer, x, position, tokens, device)
            ms = timed(run, device, options.repeats)
            peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
            plain = plain or ms
            rows.append([f"{nodes} tokens, {mode}, {len(laws)} laws", ms, ms / plain, peak])
            if nodes == 1024 and mode == "bias":
                ratio = ms / plain
    note = "batch 1, d 256, forward and backward, bfloat16 autocast"
    name = "GPU: encoder layer with laws / without, 1,024 tokens"
    goals.append(goal(name, "<= 1.15", f"{ratio:.2f}", ratio <= 1.15, note))
    side = 512 if device.type == "cuda" else 64
    model = GPTR.from_config("gptr-tiny", num_classes=577, weights="none").to(device)
    features = model.extract(torch.randint(0, 256, (16, 3, side, side), dtype=torch.uint8))
    targets = [
        {
            "labels": torch.randint(577, (8,), device=device),
            "boxes": torch.rand(8, 4, device=device) * 0.4 + 0.2,
        }
        for _ in range(16)
    ]
    ms = timed(partial(train, model, features, targets, device), device, options.repeats)
    rows.append([f"step behind the backbone, 16 images of {side} px", ms, None, None])
    rate = 16000 / ms
    note = "5,120 tokens, 577 classes, matching included; backbone and descriptors excluded"
    name = "GPU: training behind a frozen backbone, 512 px"
    goals.append(goal(name, ">= 400 images/s", f"{rate:.0f} images/s", rate >= 400, note))
    columns = ["what", "ms", "over plain", "peak MiB"]
    tables = [{"title": "Encoder layers and steps", "columns": columns, "rows": rows}]
    title = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    write(options.out, __file__, f"On {title}", goals, tables)


if __name__ == "__main__":
    main()
