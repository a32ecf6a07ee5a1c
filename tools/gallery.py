"""Write OUT/index.html, the gallery of the demos that ran into OUT/<package>.

    python tools/gallery.py OUT PACKAGE...

A demo that failed, or whose result.json breaks the schema, is shown as failed; the exit code is
then 1.
"""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import jinja2
from protocol import validate
from results import cell, with_unit

ROOT = Path(__file__).parent.parent


def entry(out: Path, name: str) -> dict[str, Any]:
    """Collect what the page shows of one package."""
    project_file = ROOT / "packages" / name / "pyproject.toml"
    description = ""
    if project_file.exists():
        description = tomllib.loads(project_file.read_text())["project"]["description"]
    shown: dict[str, Any] = {"name": name, "description": description, "faults": [], "result": None}
    folder = out / name
    if (folder / "failed.txt").exists():
        shown["faults"].append((folder / "failed.txt").read_text().strip())
    shown["faults"] += validate(folder / "result.json", "result")
    if shown["faults"]:
        return shown
    result = json.loads((folder / "result.json").read_text())
    files = ["report.html", *(figure["path"] for figure in result["figures"])]
    shown["faults"] = [f"{file} is missing" for file in files if not (folder / file).is_file()]
    if result["package"] != name:
        shown["faults"].append(f"result.json speaks of {result['package']}")
    shown["result"] = None if shown["faults"] else result
    return shown


def page(entries: list[dict[str, Any]]) -> str:
    """Render the gallery."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "with_unit": with_unit}
    results = [shown["result"] for shown in entries if shown["result"]]
    claims = [claim for result in results for claim in result["claims"]]
    return environment.get_template("gallery.html.j2").render(
        entries=entries,
        passed=len(results),
        claims=len(claims),
        met=sum(claim["met"] is True for claim in claims),
        unmet=sum(claim["met"] is False for claim in claims),
        seconds=sum(result["seconds"] for result in results),
    )


def main(out: str, *names: str) -> int:
    """Write the page; return 1 if a demo failed."""
    entries = [entry(Path(out), name) for name in names]
    target = Path(out) / "index.html"
    temporary = target.with_suffix(".tmp")
    temporary.write_text(page(entries))
    temporary.replace(target)
    for shown in entries:
        for fault in shown["faults"]:
            print(f"{shown['name']}: {fault}", file=sys.stderr)
    failed = [shown["name"] for shown in entries if shown["faults"]]
    print(f"{target}: {len(entries) - len(failed)} demos shown, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
