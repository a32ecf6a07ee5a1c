"""Check a built wheel against the package's sources.

    python tools/check_wheel.py WHEEL PACKAGE_FOLDER

It must hold every file of ``src/<name>``, nothing outside ``<name>/`` and its metadata, no sources
of the native part, and may import only what its metadata declares (dependencies or extras).
"""

from __future__ import annotations

import ast
import re
import sys
import zipfile
from email.parser import Parser
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Modules whose distribution has another name; every other module is looked up under its own.
DISTRIBUTIONS = {
    "PIL": {"pillow"},
    "cairosvg": {"cairosvg"},
    "cpuinfo": {"py-cpuinfo"},
    "cuda": {"cuda-python", "cuda-bindings"},
    "cv2": {"opencv-python-headless", "opencv-python"},
    "flwr": {"flwr"},
    "google": {"protobuf"},
    "mpl_toolkits": {"matplotlib"},
    "open_clip": {"open-clip-torch"},
    "pillow_heif": {"pillow-heif"},
    "pynvml": {"nvidia-ml-py"},
    "serial": {"pyserial"},
    "skimage": {"scikit-image"},
    "sklearn": {"scikit-learn"},
    "usb": {"pyusb"},
    "yaml": {"pyyaml"},
    "zmq": {"pyzmq"},
}
NEVER = ("__pycache__", ".pyc", ".cpp", ".cu", ".cmake", "CMakeLists.txt")


def content_faults(files: list[str], sources: set[str], name: str) -> list[str]:
    """Compare the wheel's files with the files below ``src`` (both as POSIX paths)."""
    faults = []
    for file in files:
        top = PurePosixPath(file).parts[0]
        if top != name and not re.fullmatch(rf"{re.escape(name)}-[^/]+\.dist-info", top):
            faults.append(f"the wheel holds {file}, which is outside {name}/")
        elif file.endswith(NEVER) or "__pycache__" in file:
            faults.append(f"the wheel holds {file}, which is no part of an installed package")
    faults += [f"the wheel misses {file}" for file in sorted(sources - set(files))]
    return faults


def imported_modules(source: str) -> set[str]:
    """Return the top-level modules that a source file imports, wherever it does so."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def dependency_faults(
    sources: dict[str, str], declared: set[str], name: str, optional: frozenset[str] = frozenset()
) -> list[str]:
    """Name each import of a module that no declared distribution provides."""
    faults = []
    for file, text in sources.items():
        for module in sorted(imported_modules(text) - set(sys.stdlib_module_names) - {name}):
            providers = DISTRIBUTIONS.get(module, set()) | {canonicalize_name(module)}
            if not providers & declared and module not in optional:
                faults.append(f"{file} imports {module}, which no dependency or extra provides")
    return faults


def main(wheel: str, folder: str) -> int:
    """Print the faults of a wheel; return 1 if there are any."""
    name = Path(folder).name
    root = Path(folder) / "src"
    sources = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and ".egg-info" not in str(path)
        and path.suffix not in {".so", ".pyd", ".dylib"}
    }
    with zipfile.ZipFile(wheel) as archive:
        files = [file for file in archive.namelist() if not file.endswith("/")]
        texts = {file: archive.read(file).decode() for file in files if file.endswith(".py")}
        (metadata,) = (file for file in files if file.endswith(".dist-info/METADATA"))
        message = Parser().parsestr(archive.read(metadata).decode())
    lines = message.get_all("Requires-Dist") or []
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    faults = content_faults(files, sources, name) + dependency_faults(texts, declared, name)
    for fault in faults:
        print(f"{Path(wheel).name}: {fault}", file=sys.stderr)
    if not faults:
        print(f"{Path(wheel).name}: {len(files)} files, every import declared")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
