"""Fill the READMEs' tables from benchmarks/results, and render each result as Markdown.

    python tools/results.py [--check]

With ``--check`` nothing is written, and a README whose tables differ from the results is a fault.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORDS = {True: "yes", False: "no", None: "shown"}


def cell(value: object) -> str:
    """Format one table cell."""
    if value is None:
        return "not stated"
    if isinstance(value, bool):
        return WORDS[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def table(columns: list[str], rows: list[list[object]]) -> str:
    """Format a Markdown table."""
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(cell(value) for value in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def with_unit(value: object, unit: str) -> str:
    """Format a figure with its unit, where it has one."""
    return f"{cell(value)} {unit}".strip() if value is not None else cell(value)


def claims_table(result: dict, command: str) -> str:
    """Format the claims of a demo's result."""
    rows: list[list[object]] = [
        [
            claim["name"],
            with_unit(claim["paper"], claim["unit"]),
            with_unit(claim["measured"], claim["unit"]),
            WORDS[claim["met"]],
        ]
        for claim in result["claims"]
    ]
    head = f"Measured by `{command} demo --out out --seed {result['seed']}`."
    return f"{head}\n\n{table(['claim', 'paper', 'measured', 'met'], rows)}"


def goals_table(results: list[dict]) -> str:
    """Format the goals of a package's benchmarks."""
    rows: list[list[object]] = []
    for result in results:
        for goal in result["goals"]:
            measured = goal["measured"] + (f" ({goal['note']})" if goal.get("note") else "")
            command = f"`{result['command']}`"
            rows.append([goal["name"], goal["goal"], measured, WORDS[goal["met"]], command])
    return table(["goal", "bar", "measured", "met", "command"], rows)


def benchmark_page(result: dict) -> str:
    """Format one benchmark's result as a page."""
    environment = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    accelerator = f", {environment['accelerator']}" if environment.get("accelerator") else ""
    parts = [
        f"# {result['title']}",
        f"`{result['command']}`",
        f"{result['package']} {result['version']}; Python {environment['python']}, "
        f"{environment['platform']}, {environment['cpu']}{accelerator}, "
        f"{environment['threads']} thread(s); {versions}",
    ]
    if result["goals"]:
        goals = [
            [goal["name"], goal["goal"], goal["measured"], WORDS[goal["met"]], goal.get("note", "")]
            for goal in result["goals"]
        ]
        parts.append(table(["goal", "bar", "measured", "met", "note"], goals))
    for entry in result["tables"]:
        parts += [f"## {entry['title']}", table(entry["columns"], entry["rows"])]
    return "\n\n".join(parts) + "\n"


def fill(text: str, marker: str, content: str) -> str:
    """Replace what stands between a pair of markers."""
    pattern = rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)"
    return re.sub(pattern, lambda m: f"{m[1]}\n{content}\n\n{m[2]}", text, flags=re.S)


def console_script(folder: Path) -> str:
    """Return the name of a package's command."""
    import tomllib

    return next(iter(tomllib.loads((folder / "pyproject.toml").read_text())["project"]["scripts"]))


def rendered(folder: Path) -> dict[Path, str]:
    """Return what the README and the benchmarks' pages of a package should contain."""
    results = folder / "benchmarks" / "results"
    benchmarks = {
        path: json.loads(path.read_text()) for path in sorted(results.glob("bench_*.json"))
    }
    text = (folder / "README.md").read_text()
    if (results / "demo.json").exists():
        claims = claims_table(
            json.loads((results / "demo.json").read_text()), console_script(folder)
        )
        text = fill(text, "claims", claims)
    if benchmarks:
        text = fill(text, "goals", goals_table(list(benchmarks.values())))
    pages = {path.with_suffix(".md"): benchmark_page(result) for path, result in benchmarks.items()}
    return {folder / "README.md": text, **pages}


def main(*arguments: str) -> int:
    """Write the tables, or check them; return 1 if a check fails."""
    stale = 0
    for project in sorted(ROOT.glob("packages/*/pyproject.toml")):
        for path, text in rendered(project.parent).items():
            if path.exists() and path.read_text() == text:
                continue
            stale += 1
            if "--check" in arguments:
                print(
                    f"{path.relative_to(ROOT)} differs from the results: nox -s results",
                    file=sys.stderr,
                )
            else:
                path.write_text(text)
                print(f"wrote {path.relative_to(ROOT)}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
