"""Check packages against the protocol of CONTRIBUTING.md.

python tools/protocol.py PACKAGE_FOLDER...
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from pathlib import Path

import jsonschema
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
SECTIONS = [
    "Install", "Example", "Command line", "Paper and measured", "Goals", "Limits", "Citation",
]  # fmt: skip
FILES = [
    "README.md", "CHANGELOG.md", "LICENSE", "tests", "benchmarks", "benchmarks/results/demo.json",
    "src/{name}/__init__.py", "src/{name}/py.typed", "src/{name}/cli.py",
    "docs/index.md", "docs/paper_to_code.md", "docs/limits.md",
]  # fmt: skip
BACK_ENDS = {"hatchling.build", "scikit_build_core.build"}


def validate(path: Path, schema: str) -> list[str]:
    """Return the faults of a JSON file under one of the schemas in docs/schema."""
    rules = json.loads((ROOT / "docs" / "schema" / f"{schema}.schema.json").read_text())
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return [f"{path.name}: {error}"]
    errors = jsonschema.Draft202012Validator(rules).iter_errors(content)
    return [f"{path.name}: {error.json_path}: {error.message[:200]}" for error in errors]


def project_faults(name: str, table: dict) -> list[str]:
    """Check pyproject.toml."""
    project, faults = table.get("project", {}), []

    def need(holds: bool, rule: str) -> None:
        if not holds:
            faults.append(f"pyproject.toml: {rule}")

    need(project.get("name") == name.replace("_", "-"), f"name must be {name.replace('_', '-')}")
    need(isinstance(project.get("version"), str), "version must be written here")
    need(bool(project.get("description")), "description is missing")
    need(project.get("license") == "Apache-2.0", 'license must be "Apache-2.0"')
    need(project.get("license-files") == ["LICENSE"], 'license-files must be ["LICENSE"]')
    need(project.get("requires-python") == ">=3.11", 'requires-python must be ">=3.11"')
    need(len(project.get("scripts", {})) == 1, "there must be one console script")
    groups = project.get("optional-dependencies", {})
    for extra in ("test", "bench"):
        need(extra in groups, f"the extra {extra} is missing")
    for line in [*project.get("dependencies", []), *(line for g in groups.values() for line in g)]:
        requirement = Requirement(line)
        own = requirement.name.replace("_", "-") == project.get("name")
        operators = {specifier.operator for specifier in requirement.specifier}
        need(own or bool(operators & {">=", ">", "~="}), f"{line!r} has no lower bound")
        need(not operators & {"==", "==="}, f"{line!r} is a pin; pins live in constraints.txt")
    build = table.get("build-system", {})
    need(build.get("build-backend") in BACK_ENDS, f"build-backend must be one of {BACK_ENDS}")
    need(not any("torch" in line for line in build.get("requires", [])), "the build requires torch")
    options = table.get("tool", {}).get("pytest", {}).get("ini_options", {})
    need(
        "not stress and not peer" in str(options.get("addopts")),
        "pytest must leave out stress, peer",
    )
    return faults


def readme_faults(text: str) -> list[str]:
    """Check the README's sections, markers and figures."""
    found = [title for title in re.findall(r"^## (.+)$", text, re.M) if title in SECTIONS]
    faults = [] if found == SECTIONS else [f"README.md: sections are {found}, not {SECTIONS}"]
    for marker in ("claims", "goals"):
        if text.count(f"<!-- {marker} -->") != 1 or text.count(f"<!-- /{marker} -->") != 1:
            faults.append(
                f"README.md: one block <!-- {marker} --> ... <!-- /{marker} --> is needed"
            )
    if "```python" not in text.partition("## Example")[2].partition("\n## ")[0]:
        faults.append("README.md: the section Example has no Python")
    return faults


def import_faults(folder: Path, packages: set[str]) -> list[str]:
    """Name each import of another package of this repository, and a missing ``__all__``."""
    faults = []
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for module in {name.split(".")[0] for name in names} & (packages - {folder.name}):
                faults.append(f"{path.relative_to(folder)} imports the package {module}")
    if "__all__" not in (folder / "src" / folder.name / "__init__.py").read_text():
        faults.append(f"src/{folder.name}/__init__.py has no __all__")
    return faults


def package_faults(folder: Path, packages: set[str]) -> list[str]:
    """Return every fault of one package."""
    name = folder.name
    missing = [file for file in FILES if not (folder / file.format(name=name)).exists()]
    if missing:
        return [f"{file.format(name=name)} is missing" for file in missing]
    table = tomllib.loads((folder / "pyproject.toml").read_text())
    faults = project_faults(name, table)
    if (folder / "csrc").exists() != (folder / "CMakeLists.txt").exists():
        faults.append("csrc/ and CMakeLists.txt belong together")
    faults += readme_faults((folder / "README.md").read_text())
    faults += import_faults(folder, packages)
    if table.get("project", {}).get("version", "?") not in (folder / "CHANGELOG.md").read_text():
        faults.append("CHANGELOG.md does not name the version of pyproject.toml")
    faults += validate(folder / "benchmarks" / "results" / "demo.json", "result")
    for path in sorted(folder.glob("benchmarks/results/bench_*.json")):
        faults += validate(path, "benchmark")
    return faults


def main(*folders: str) -> int:
    """Print the faults of the packages; return 1 if there are any."""
    paths = [Path(folder).resolve() for folder in folders]
    packages, failed = {path.name for path in paths}, 0
    for path in paths:
        faults = package_faults(path, packages)
        failed += bool(faults)
        for fault in faults:
            print(f"{path.name}: {fault}", file=sys.stderr)
    print(f"protocol: {len(paths) - failed} packages keep it, {failed} do not")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
