"""Do the tests notice faults? Mutants of metrics, schedule and poisoning, by mutmut.

mutmut changes one operator, constant or argument of the source at a time and runs the tests that
reach it. What no test notices is listed with its change, and those that cannot be noticed because
they change no result (`EQUIVALENT`) are listed beside their reasons: they count as survivors.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from common import goal, parser, write

PACKAGE = Path(__file__).parents[1]
MODULES = ("metrics", "poison", "schedules")
TESTS = ("conftest.py", "test_metrics.py", "test_poison.py", "test_schedules.py")
# The installed package must not stand before the mutated copy, as an editable one does.
DRIVER = """
import sys
sys.meta_path = [f for f in sys.meta_path if "ScikitBuild" not in type(f).__name__]
from mutmut.__main__ import cli
cli()
"""
SETTINGS = """[mutmut]
source_paths=src
only_mutate={only}
pytest_add_cli_args=
    -p
    no:cacheprovider
    -p
    no:randomly
pytest_add_cli_args_test_selection=tests
process_isolation={isolation}
timeout_multiplier=20
use_git_change_detection=false
[tool:pytest]
addopts = -m "not stress and not peer"
markers =
    native
    stress
    peer
"""
# mutants that change no result: reason; the numbers are mutmut's, of this version of the source
SAVED = "an array of integers is never pickled"
LOADED = "None and the default also refuse pickled arrays"
BOOLEANS = "numpy's default type of booleans asked for None is the same float64"
EQUIVALENT = {
    "metrics.x_wilson__mutmut_75": "the upper end is below 1 where not all are hits",
    "metrics.x_bootstrap__mutmut_5": "the mean of integers is the same floating point number",
    "metrics.x_bootstrap__mutmut_7": "the mean of integers is the same floating point number",
    "metrics.x_effectiveness_interval__mutmut_8": BOOLEANS,
    "metrics.x_effectiveness_interval__mutmut_9": BOOLEANS,
    "metrics.x_evaluate__mutmut_24": BOOLEANS,
    "metrics.x_evaluate__mutmut_25": BOOLEANS,
    "metrics.xǁEvaluationǁplot__mutmut_53": "bars begin at 0, which matplotlib keeps as the limit",
    "poison.xǁPoisonPlanǁapply___mutmut_26": "clean-label poisons have the target's label already",
    "poison.xǁPoisonPlanǁapply___mutmut_27": "clean-label poisons have the target's label already",
    "poison.xǁPoisonPlanǁvictims__mutmut_13": "neither -1 nor -2 is a class",
    "poison.xǁPoisonPlanǁsave__mutmut_10": SAVED,
    "poison.xǁPoisonPlanǁsave__mutmut_13": SAVED,
    "poison.xǁPoisonPlanǁsave__mutmut_14": SAVED,
    "poison.xǁPoisonPlanǁload__mutmut_10": LOADED,
    "poison.xǁPoisonPlanǁload__mutmut_12": LOADED,
    "poison.xǁPoisonPlanǁload__mutmut_19": LOADED,
    "poison.xǁPoisonPlanǁload__mutmut_21": LOADED,
    "poison.x_poison__mutmut_41": "two inputs have the shape of one",
    "poison.x_poison__mutmut_89": "ones of another type are as different from zero",
    "poison.x_poison__mutmut_91": "ones of another type are as different from zero",
    "schedules.xǁSuperFineTuneConfigǁlearning_rate__mutmut_13": "both forms are 1 at the peak",
    "schedules.x_plot_schedule__mutmut_44": "matplotlib's default size is 10 too",
}


def prepare(work: Path, isolation: str) -> None:
    """Copy source, tests and settings to where mutmut works."""
    shutil.copytree(PACKAGE / "src", work / "src", dirs_exist_ok=True)
    native = find_spec("backdoor_ft._native")
    if native is not None and native.origin is not None:
        shutil.copy(native.origin, work / "src" / "backdoor_ft")
    (work / "tests").mkdir(exist_ok=True)
    for name in TESTS:
        shutil.copy(PACKAGE / "tests" / name, work / "tests")
    only = "".join(f"\n    src/backdoor_ft/{m}.py" for m in MODULES)
    (work / "setup.cfg").write_text(SETTINGS.format(only=only, isolation=isolation))


def mutmut(work: Path, *words: str) -> str:
    """Run one command of mutmut and return what it prints."""
    found = subprocess.run(
        [sys.executable, "-c", DRIVER, *words],
        cwd=work, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if found.returncode:
        sys.exit(f"mutmut {words[0]} failed:\n{found.stdout[-3000:]}\n{found.stderr[-3000:]}")
    return found.stdout


def change(work: Path, name: str) -> str:
    """Return the lines that a mutant changes, as `before -> after`."""
    lines = mutmut(work, "show", name).splitlines()
    parts: dict[str, list[str]] = {"-": [], "+": []}
    for line in lines:
        if line[:1] in parts and not line.startswith(("---", "+++")):
            parts[line[0]].append(line[1:].strip())
    return f"{' '.join(parts['-'])} -> {' '.join(parts['+'])}"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--work", type=Path, help="folder to work in, kept; a temporary one else")
    options.add_argument("--isolation", default="fork", choices=("fork", "forkserver"))
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        prepare(work, arguments.isolation)
        mutmut(work, "run", "--max-children", str(arguments.threads))
        lines = mutmut(work, "results", "--all", "true").splitlines()
        status = dict(line.strip().split(": ") for line in lines if "__mutmut_" in line)
        noticed = {"killed", "timeout", "segfault", "caught by type check"}
        left = {name: kind for name, kind in status.items() if kind not in noticed}
        survivors = []
        for name, kind in left.items():
            what = change(work, name)
            short = re.sub(r"^backdoor_ft\.", "", name)
            survivors.append([short, kind, what, EQUIVALENT.get(short, "")])
    per_module = []
    for module in MODULES:
        own = {n: k for n, k in status.items() if n.startswith(f"backdoor_ft.{module}.")}
        killed = sum(k in noticed for k in own.values())
        per_module.append([module, len(own), killed, f"{killed / len(own):.1%}"])
    total, killed = len(status), len(status) - len(left)
    same = sum(bool(row[-1]) for row in survivors)
    goals = [
        goal(
            "mutation score of metrics, schedule and poisoning",
            "at least 90 %",
            f"{100 * killed / total:.1f} % ({killed} of {total} mutants)",
            killed >= 0.9 * total,
            f"mutmut; of the {len(left)} that are left, {same} change no result; they count as"
            " not noticed all the same",
        )
    ]
    tables = [
        {"title": "By module", "columns": ["module", "mutants", "noticed", "share"],
         "rows": per_module},
        {"title": "Mutants that no test notices",
         "columns": ["mutant", "status", "change", "why it changes no result"],
         "rows": survivors},
    ]  # fmt: skip
    write(
        arguments, "bench_mutation", "Mutation score of the tests", goals, tables,
        ("torch", "numpy", "mutmut", "pytest"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
