"""Video: frames per second, flicker of a still scene, how fast a cut is over."""

from __future__ import annotations

import statistics
import time

import numpy as np
from common import parser, write
from noiser import VideoEnhancer, baselines
from noiser.metrics import luma

NAME = "bench_video"
FRAMES, WARM = 12, 2


def scene(height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = rng.random((height // 8 + 1, width // 8 + 1, 3)).cumsum(axis=1)
    smooth /= smooth.max()
    return np.kron(smooth, np.ones((8, 8, 1)))[:height, :width] * 0.2


def shots(value: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    """Shots of a still scene with the noise of a sensor."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.004, (count, *value.shape))
    return [np.rint(255 * np.clip(value + n, 0, 1)).astype(np.uint8) for n in noise]


def frame_seconds(run, frames: list[np.ndarray]) -> list[float]:
    times = []
    for frame in frames:
        started = time.perf_counter()
        run(frame)
        times.append(time.perf_counter() - started)
    return times[WARM:]


def jitter(value: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    """Shots of a still scene whose exposure jumps by up to 10 %."""
    gains = 1 + np.random.default_rng(seed).uniform(-0.1, 0.1, count)
    return [np.rint(255 * np.clip(gain * value, 0, 1)).astype(np.uint8) for gain in gains]


def mean_change(frames: list[np.ndarray]) -> float:
    """Mean change of the frame mean from frame to frame, in levels."""
    return float(np.abs(np.diff([frame.mean() for frame in frames])).mean())


def recovery(method: str) -> int:
    """Frames after a cut until the mean stays within one level of where it ends."""
    before, after = scene(270, 480, 1), scene(270, 480, 2) * 0.3
    frames = shots(before, 10, 0) + shots(after, 20, 1)
    means = [255 * luma(f).mean() for f in VideoEnhancer(method, threads=2).frames(frames)][10:]
    off = [i for i, mean in enumerate(means) if abs(mean - means[-1]) > 1]
    return off[-1] + 1 if off else 0


def main() -> None:
    arguments = parser(__doc__).parse_args()
    goals: list[dict] = []
    rows: list[list] = []
    frames = shots(scene(1080, 1920, 0), FRAMES, 0)
    peer = frame_seconds(lambda f: baselines.clahe(f), frames[: WARM + 3])
    for method, bar, what in (
        ("closed_form", 60, "table (closed form)"),
        ("paper", 20, "network"),
        ("plus", 20, "plus (base and detail per frame)"),
    ):
        video = VideoEnhancer(method, threads=2)
        times = frame_seconds(video.enhance, frames)
        rate = 1 / statistics.median(times)
        goals.append(
            {
                "name": f"1080p, {what}, statistics included, 2 threads",
                "goal": f"at least {bar} frames/s",
                "measured": f"{rate:.0f} frames/s (median of {len(times)} frames)",
                "met": rate >= bar,
            }
        )
        rows.append([what, rate, statistics.median(peer) / statistics.median(times)])
    still = shots(scene(270, 480, 3), 20, 4)
    shaken = jitter(scene(270, 480, 3), 20, 5)
    before = mean_change(shaken)
    for method in ("paper", "plus"):
        for what, bar, shown in (
            ("a still scene with sensor noise", 0.1, still),
            ("10 % jitter of the exposure", 0.2, shaken),
        ):
            flicker = mean_change(list(VideoEnhancer(method, threads=2).frames(shown)))
            goals.append(
                {
                    "name": f"flicker of {what}, method {method}",
                    "goal": f"at most {bar} levels",
                    "measured": f"{flicker:.3f} levels"
                    + (f" (input {before:.2f})" if shown is shaken else ""),
                    "met": flicker <= bar,
                }
            )
    late = max(recovery(method) for method in ("plus", "paper", "closed_form"))
    goals.append(
        {
            "name": "frames after a cut until the picture is within one level of the end",
            "goal": "at most 3",
            "measured": str(late),
            "met": late <= 3,
        }
    )
    table = {
        "title": "1080p frames; the peer is this package's numpy CLAHE",
        "columns": ["path", "frames/s", "CLAHE / ours"],
        "rows": [[r[0], round(r[1], 1), round(r[2], 1)] for r in rows],
    }
    command = f"python benchmarks/{NAME}.py --out benchmarks/results"
    write(arguments.out, NAME, "Video", command, goals, [table], 2)


if __name__ == "__main__":
    main()
