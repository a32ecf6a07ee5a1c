"""The C sources against NVIDIA's own nvml.h (package nvidia-nvml-dev)."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
from migperf.nvml.sim import library_path

pytestmark = pytest.mark.native

SOURCES = Path(__file__).parents[1] / "csrc"


def header() -> Path:
    try:
        files = metadata.files("nvidia-nvml-dev") or []
    except metadata.PackageNotFoundError:
        pytest.skip("nvidia-nvml-dev is not installed")
    for file in files:
        if file.name == "nvml.h":
            return Path(str(file.locate()))
    pytest.skip("nvidia-nvml-dev has no nvml.h")


def compiler() -> str:
    found = shutil.which("cc") or shutil.which("gcc")
    if found is None:
        pytest.skip("no C compiler")
    return found


@pytest.mark.parametrize("source", sorted(p.name for p in SOURCES.glob("*.c")))
def test_signatures_and_structures_equal_nvml_h(source: str, tmp_path: Path) -> None:
    """Compiling against the original turns every difference of a prototype into an error."""
    command = [
        compiler(), "-std=c11", "-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations",
        "-DMIGPERF_NVML_H", f"-I{header().parent}", "-c", str(SOURCES / source), "-o",
        str(tmp_path / "out.o"),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_mig_symbol_of_nvml_h_is_exported() -> None:
    text = header().read_text(encoding="utf-8")
    names = set(re.findall(r"nvmlReturn_t DECLDIR (nvml\w+)\(", text))
    wanted = {
        n
        for n in names
        if re.search(r"Mig|GpuInstance|ComputeInstance|Gpm|GetAttributes", n) and "Vgpu" not in n
    }
    assert len(wanted) >= 35
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", str(library_path())],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    exported = set(re.findall(r" T (\w+)", symbols))
    assert wanted - exported == set()
    # Nothing but NVML and the control calls leaves the library.
    assert all(n.startswith(("nvml", "migperfSim")) for n in exported)
