"""Memory, training, start, 16 bits, flicker: what has a bar and is no picture quality."""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from common import parser, write
from noiser import (
    TrainingLog,
    VideoEnhancer,
    enhance,
    forward,
    metrics,
    pretrained,
    train,
    train_many,
)
from noiser.camera import retake
from noiser.png import decode16, encode16
from PIL import Image

NAME = "bench_limits"
SCALE = """
import re, sys
from pathlib import Path
import numpy as np
from noiser import apply_network, collect_statistics, pretrained
side, source, target = int(sys.argv[1]), sys.argv[2], sys.argv[3]
image = np.memmap(source, np.uint8, "r", shape=(side, side, 3))
out = np.memmap(target, np.uint8, "w+", shape=image.shape)
apply_network(pretrained(), image, collect_statistics(image, threads=2), threads=2, out=out)
# ru_maxrss would start at the peak of the process that started this one
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
"""


def big_image(path: Path, side: int) -> None:
    """Write side x side pixels of dark structure and noise, band by band."""
    rng = np.random.default_rng(0)
    band = np.empty((500, side, 3), np.uint8)
    with path.open("wb") as file:
        for first in range(0, side, 500):
            band[:] = (np.linspace(5, 40, side)[None, :, None] + first * 20 / side).astype(np.uint8)
            band += rng.integers(0, 9, (500, 1, 3), dtype=np.uint8)
            file.write(band[: min(500, side - first)].tobytes())


def memory(side: int, folder: Path) -> tuple[float, float]:
    """Peak memory in MB and seconds for an image of side x side pixels, from file to file."""
    big_image(folder / "in", side)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", SCALE, str(side), str(folder / "in"), str(folder / "out")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return float(done.stdout), time.perf_counter() - started


def import_seconds(repeats: int = 7) -> float:
    """Processor time of the import, which a busy machine does not stretch."""
    code = "import time as t; a = t.process_time(); import noiser; print(t.process_time() - a)"
    return statistics.median(
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
        for _ in range(repeats)
    )


def imported() -> list[str]:
    code = "import sys, noiser; print([m for m in ('torch', 'scipy', 'cv2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return [] if done.stdout.strip() == "[]" else [done.stdout.strip()]


def wheel_bytes() -> tuple[int, int]:
    """Size of the package's wheel, packed and unpacked."""
    with tempfile.TemporaryDirectory(prefix="noiser") as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder,
             str(Path(__file__).parents[1])], check=True,
        )  # fmt: skip
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return wheel.stat().st_size, sum(entry.file_size for entry in archive.infolist())


def jpeg_batch(folder: Path, count: int) -> float:
    """Processor seconds per photograph of 6000 x 4000 pixels, all threads of the command line."""
    from skimage import data

    dark = retake(np.tile(data.chelsea(), (14, 14, 1))[:4000, :6000], -3, seed=0)
    (folder / "in").mkdir()
    Image.fromarray(dark).save(folder / "in" / "0.jpg", quality=92)
    for i in range(1, count):
        shutil.copy(folder / "in" / "0.jpg", folder / "in" / f"{i}.jpg")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "noiser.cli", "enhance", "in", "-o", "out", "--threads", "2"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / count


def flicker(method: str) -> tuple[float, float]:
    """Mean change of the frame mean in levels under 10 % jitter: input and output."""
    from skimage import data

    rng = np.random.default_rng(0)
    scene = data.astronaut() / 255 * 0.2
    frames = [np.rint(255 * g * scene).astype(np.uint8) for g in 1 + rng.uniform(-0.1, 0.1, 20)]
    outs = [f.mean() for f in VideoEnhancer(method, threads=1).frames(frames)]
    before = float(np.abs(np.diff([f.mean() for f in frames])).mean())
    return before, float(np.abs(np.diff(outs)).mean())


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--side", type=int, default=30_000, help="of the large image, in pixels")
    options.add_argument("--photographs", type=int, default=20, help="JPEGs of 24 MPix")
    arguments = options.parse_args()
    goals: list[dict] = []

    def goal(name: str, bar: str, measured: str, met: bool | None) -> None:
        goals.append({"name": name, "goal": bar, "measured": measured, "met": met})
        print(name, measured, met, flush=True)

    seconds, logs = [], []
    for seed in range(3):
        log = TrainingLog()
        started = time.process_time()
        train(seed=seed, log=log)
        seconds.append(time.process_time() - started)
        logs.append(log.final())
    median = statistics.median(seconds)
    goal("training, 2000 steps, 993 parameters, one thread", "at most 10 s",
         f"{median:.1f} s (median processor time of 3 seeds)", median <= 10)  # fmt: skip
    l1, tv = (float(np.mean([entry[k] for entry in logs])) for k in (0, 1))
    goal("losses after training (L1, total variation)", "0.70 ± 0.01 and 0.081 ± 0.004",
         f"{l1:.4f} and {tv:.4f} (3 seeds)",
         abs(l1 - 0.70) <= 0.01 and abs(tv - 0.081) <= 0.004)  # fmt: skip
    started = time.perf_counter()
    many = train_many(range(16), jobs=2)
    together = time.perf_counter() - started
    alike = many[0].to_json() == train(seed=0).to_json()
    goal("16 seeds at once on 2 threads, each the bytes of its single training", "16 times 10 s",
         f"{together:.0f} s", together <= 160 and alike)  # fmt: skip
    twice = [train(seed=5, steps=200).to_json() for _ in range(2)]
    goal("one seed gives one model", "equal bytes", str(twice[0] == twice[1]), twice[0] == twice[1])

    same = train(seed=0)
    shipped = all(np.array_equal(a, b) for a, b in zip(same.arrays(), pretrained().arrays()))
    goal("shipped weights come from noiser train --seed 0", "equal bytes on the machine they"
         " were made on", str(shipped), shipped)  # fmt: skip

    start = import_seconds()
    goal(
        "import noiser", "below 0.3 s", f"{start:.2f} s (processor time, median of 7)", start < 0.3
    )
    heavy = imported()
    goal("import noiser loads neither torch nor scipy", "none", str(heavy or "none"), not heavy)

    size, unpacked = wheel_bytes()
    goal(
        "wheel", "below 2 MB", f"{size / 1e6:.2f} MB ({unpacked / 1e6:.1f} MB unpacked)", size < 2e6
    )

    with tempfile.TemporaryDirectory(prefix="noiser") as name:
        seconds_each = jpeg_batch(Path(name), arguments.photographs)
    goal(f"{arguments.photographs} JPEGs of 24 MPix from folder to folder, command line, 2 cores",
         "1000 in at most 15 min", f"{1000 * seconds_each / 60:.1f} min for 1000 by processor time"
         f" ({seconds_each:.2f} s each, all threads)", seconds_each <= 0.9)  # fmt: skip

    ramp = np.arange(65536, dtype=np.uint16).reshape(64, 1024)
    picture = decode16(encode16(enhance(np.stack([ramp] * 3, axis=2))))
    levels = len(np.unique(picture[..., 0]))
    bent = len(np.unique(enhance(np.stack([ramp] * 3, axis=2), "plus")[..., 0]))
    goal("distinct levels of a 16-bit ramp through enhance and PNG", "at least 60000",
         f"{levels} (method auto leaves a ramp alone; the curve of plus merges some: {bent})",
         levels >= 60_000)  # fmt: skip

    from skimage import data

    scene = data.chelsea() / 255
    reference = forward(pretrained(), scene, eps=1e-12)
    worst = max(
        255 * float(np.abs(forward(pretrained(), a * scene, eps=1e-12) - reference).max())
        for a in (0.1, 0.3, 0.6)
    )
    goal("exposure invariance, gains 0.1 ... 1, float input, eps 1e-12", "at most 1 level",
         f"{worst:.4f} levels", worst <= 1)  # fmt: skip

    for method in ("paper", "plus"):
        before, after = flicker(method)
        goal(f"flicker under 10 % jitter of the exposure, method {method}", "at most 0.2 levels",
             f"{after:.2f} levels (input {before:.2f})", after <= 0.2)  # fmt: skip

    darkened = [retake(getattr(data, n)(), -4, seed=0) for n in ("astronaut", "coffee", "chelsea")]
    means = [metrics.luma(enhance(shot, "paper")).mean() for shot in darkened]
    goal("mean of the network's output", "0.48 ± 0.03", f"{np.mean(means):.3f}",
         abs(float(np.mean(means)) - 0.48) <= 0.03)  # fmt: skip

    folder = Path(tempfile.mkdtemp(prefix="noiser"))
    try:
        wanted = 7 * arguments.side**2
        if shutil.disk_usage(folder).free < wanted:
            print(f"large image left out: {wanted / 1e9:.0f} GB of disk are needed")
        else:
            peak, elapsed = memory(arguments.side, folder)
            goal(f"{arguments.side} x {arguments.side} pixels from file to file", "below 600 MB",
                 f"{peak:.0f} MB, {elapsed:.0f} s on 2 threads", peak < 600)  # fmt: skip
    finally:
        shutil.rmtree(folder)
    write(arguments.out, NAME, __doc__.strip(),
          f"python benchmarks/{NAME}.py --out benchmarks/results", goals, [], 2)  # fmt: skip


if __name__ == "__main__":
    main()
