"""The simulated driver under ThreadSanitizer, AddressSanitizer and UndefinedBehaviorSanitizer.

Many threads of many processes at once, some killed. ``nox -s sanitize`` runs the Python tests of
the driver under ASan and UBSan as well; ThreadSanitizer needs a program without the interpreter.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from migperf import Node, Simulator

SOURCES = Path(__file__).parents[1] / "csrc"
DRIVER = Path(__file__).with_name("sim_threads.c")
OPTIONS = {
    "TSAN_OPTIONS": "halt_on_error=0 exitcode=66 second_deadlock_stack=1",
    "ASAN_OPTIONS": "detect_leaks=1 exitcode=67",
    "UBSAN_OPTIONS": "halt_on_error=1 print_stacktrace=1",
}


def build(folder: Path, sanitizers: str, *sources: Path) -> Path:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    program = folder / "program"
    built = subprocess.run(
        [compiler, "-std=c11", "-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={sanitizers}",
         *map(str, sources), "-o", str(program), "-pthread"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if built.returncode and "cannot find" in built.stderr:
        pytest.skip(f"gcc has no {sanitizers} sanitizer")
    assert built.returncode == 0, built.stderr
    return program


def run(program: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(program)]
    setarch = shutil.which("setarch")
    if setarch:  # ThreadSanitizer does not start under every randomisation of addresses
        command = [setarch, "-R", *command]
    return subprocess.run(
        command, env={**os.environ, **OPTIONS, **environment}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.stress
@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_threads_and_processes_at_once(sanitizers: str, tmp_path: Path) -> None:
    program = build(tmp_path, sanitizers, DRIVER, *sorted(SOURCES.glob("*.c")))
    state = tmp_path / "machine"
    with Node.open(Simulator.create("h100-80gb:2", state)) as node:
        for gpu in node.gpus:
            gpu.set_mig_mode(True)
        done = run(program, MIGPERF_SIM_STATE=str(state), MIGPERF_SIM_TRACE=str(tmp_path / "trace"))
        assert done.returncode == 0, done.stderr[-6000:]
        assert "Sanitizer" not in done.stderr
        assert done.stdout == "0 processes failed, 4 killed\n"
        assert node.sim.broken_invariants() == 0
        calls = node.sim.counters().calls
        assert calls["gi_create"] > 100
        assert calls["gi_destroy"] > 100


@pytest.mark.stress
def test_the_sanitizer_would_see_a_race(tmp_path: Path) -> None:
    """Without this, a sanitizer that is switched off would pass the test above."""
    source = tmp_path / "race.c"
    source.write_text(
        "#include <pthread.h>\nint shared;\n"
        "static void *add(void *x) { for (int i = 0; i < 1000; i++) shared++; return x; }\n"
        "int main(void) { pthread_t t; pthread_create(&t, 0, add, 0); add(0);"
        " pthread_join(t, 0); return 0; }\n"
    )
    done = run(build(tmp_path, "thread", source))
    assert done.returncode == 66
    assert re.search("WARNING: ThreadSanitizer: data race", done.stderr)
