"""The kernels in a program of their own under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "csrc"
DRIVER = Path(__file__).with_name("fused_driver.cpp")
FLAGS = {
    "kernel_avx2": ["-mavx2"],
    "kernel_avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    folder = tmp_path_factory.mktemp("sanitized")
    x86 = platform.machine() in ("x86_64", "AMD64")
    common = ["-std=c++17", "-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined",
              *(["-DBACKDOOR_FT_X86"] if x86 else [])]  # fmt: skip
    names = ["dispatch", "kernel_portable", *(FLAGS if x86 else ())]
    parts = [(SOURCES / f"{n}.cpp", FLAGS.get(n, [])) for n in names] + [(DRIVER, [])]
    objects = []
    for source, flags in parts:
        target = folder / f"{source.stem}.o"
        command = [compiler, *common, *flags, "-c", str(source), "-o", str(target)]
        subprocess.run(command, check=True, capture_output=True)
        objects.append(str(target))
    out = folder / "program"
    linked = subprocess.run(
        [compiler, "-fsanitize=address,undefined", *objects, "-o", str(out)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if linked.returncode and "cannot find" in linked.stderr:
        pytest.skip("g++ has no sanitizers")
    assert linked.returncode == 0, linked.stderr
    return out


@pytest.mark.stress
def test_kernels_touch_nothing_outside_their_buffers(program: Path) -> None:
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "runtime error" not in done.stderr
    assert int(done.stdout.split()[0]) >= 8


@pytest.mark.stress
def test_the_sanitizer_would_see_a_table_that_is_too_short(program: Path) -> None:
    """Without this, a sanitizer that is switched off would pass the test above."""
    done = subprocess.run([program, "off"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
