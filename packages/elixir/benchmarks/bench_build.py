"""The native core built from a source distribution."""

import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from common import arguments, goal, write

PACKAGE = Path(__file__).resolve().parent.parent
SDIST = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"


def build(source: Path, out: Path, jobs: int) -> float:
    """Build a wheel with the tools that are installed; return the seconds."""
    start = time.perf_counter()
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(out),
            str(source),
        ],
        check=True,
        env=os.environ | {"CMAKE_BUILD_PARALLEL_LEVEL": str(jobs), "ELIXIR_CUDA": "0"},
    )
    return time.perf_counter() - start


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    seconds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-c", SDIST, str(folder)], cwd=PACKAGE, check=True)
        archive = next(folder.glob("*.tar.gz"))
        for number in range(options.rounds):
            place = folder / str(number)
            with tarfile.open(archive) as file:
                file.extractall(place, filter="data")
            seconds.append(build(next(place.iterdir()), place / "wheel", options.jobs))
        native = [n for n in _names(place / "wheel") if "_native" in n]
    goals = [
        goal(
            "native core built from the source distribution",
            "< 10 s",
            f"{statistics.median(seconds):.1f} s (from {min(seconds):.1f} to {max(seconds):.1f})",
            statistics.median(seconds) < 10 and len(native) == 1,
            f"pip wheel, {options.jobs} jobs, {options.rounds} rounds from nothing; three "
            "instruction sets; build tools installed before",
        )
    ]
    write(options.out, __file__, "Building", goals, [])


def _names(folder: Path) -> list[str]:
    from zipfile import ZipFile

    with ZipFile(next(folder.glob("*.whl"))) as wheel:
        return wheel.namelist()


if __name__ == "__main__":
    main()
