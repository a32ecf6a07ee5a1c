"""The native core built from a source distribution."""

import os
import resource
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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    seconds, before = [], resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-c", SDIST, str(folder)], cwd=PACKAGE, check=True)
        archive = next(folder.glob("*.tar.gz"))
        for number in range(options.rounds):
            place = folder / str(number)
            with tarfile.open(archive) as file:
                file.extractall(place, filter="data")
            seconds.append(build(next(place.iterdir()), place / "wheel", options.jobs))
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        native = [n for n in _names(place / "wheel") if "_native." in n]
    work = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    goals = [
        goal(
            "native core built from the source distribution",
            "< 10 s",
            f"{min(seconds):.1f} s (least of {options.rounds} rounds, median "
            f"{statistics.median(seconds):.1f})",
            min(seconds) < 10 and len(native) == 1,
            f"pip wheel, {options.jobs} jobs, from nothing, three instruction sets, build tools "
            f"installed before; {work / options.rounds:.1f} s of CPU time a round: a shared "
            "machine stretches the median",
        )
    ]
    write(options.out, __file__, "Building", goals, [])


def _names(folder: Path) -> list[str]:
    from zipfile import ZipFile

    with ZipFile(next(folder.glob("*.whl"))) as wheel:
        return wheel.namelist()


if __name__ == "__main__":
    main()
