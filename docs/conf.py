"""Sphinx configuration. The pages of each package are gathered from packages/*/docs."""

import importlib
import inspect
import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from results import benchmark_page, claims_table, console_script, goals_table  # noqa: E402

project = "Research libraries"
author = "The maintainers of this repository"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build", "requirements.txt", "**/.ipynb_checkpoints"]
html_theme = "furo"
html_title = "Research libraries"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_merge_streams = True
napoleon_numpy_docstring = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # an attribute may stand in the class docstring and as a member
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
# packages may have classes of the same name: a bare name in a docstring is then no link
suppress_warnings = ["myst.xref_missing", "ref.python"]

FRONT = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n\n"
GENERATED = Path(__file__).parent / "_generated"


def api_page(name: str) -> str:
    """List the public names of a package by kind, each with its docstring."""
    package = importlib.import_module(name)
    groups: dict[str, list[str]] = {"Functions": [], "Classes": [], "Modules": [], "Data": []}
    for public in package.__all__:
        thing = getattr(package, public)
        if public.startswith("__"):
            continue
        if inspect.ismodule(thing):
            # what the package's own face shows is not described twice
            shown = [n for n in package.__all__ if getattr(thing, n, None) is getattr(package, n)]
            skip = f"   :exclude-members: {', '.join(shown)}\n" if shown else ""
            groups["Modules"].append(f".. automodule:: {name}.{public}\n   :members:\n{skip}")
        elif inspect.isclass(thing):
            groups["Classes"].append(f".. autoclass:: {name}.{public}\n   :members:\n")
        elif callable(thing):
            groups["Functions"].append(f".. autofunction:: {name}.{public}\n")
        else:
            groups["Data"].append(f".. autodata:: {name}.{public}\n   :no-value:\n")
    parts = [f"# API of {name}\n"]
    for title, entries in groups.items():
        if entries:
            body = "\n".join(entries)
            parts.append(f"## {title}\n\n```{{eval-rst}}\n{body}```\n")
    return "\n".join(parts)


def measured(folder: Path) -> str:
    """Return the tables of a package's README: claims of the demo, goals of the benchmarks."""
    results = folder / "benchmarks" / "results"
    demo = json.loads((results / "demo.json").read_text())
    goals = [json.loads(path.read_text()) for path in sorted(results.glob("bench_*.json"))]
    parts = ["## Paper and measured", claims_table(demo, console_script(folder))]
    if goals:
        parts += ["## Goals", goals_table(goals)]
    return "\n\n".join(parts)


def gather() -> None:
    """Write the generated pages: the packages' own, their API, the results."""
    shutil.rmtree(GENERATED, ignore_errors=True)
    sections = ["# Results\n\nEverything below was rendered from `packages/*/benchmarks/results`."]
    for project_file in sorted(ROOT.glob("packages/*/pyproject.toml")):
        folder = project_file.parent
        name = folder.name
        place = GENERATED / "packages" / name
        shutil.copytree(folder / "docs", place)
        for page in place.rglob("*.md"):
            text = page.read_text()
            if "{code-cell" in text and not text.startswith("---\n"):
                page.write_text(FRONT + text)
        others = sorted(page.stem for page in place.glob("*.md") if page.stem != "index")
        with (place / "index.md").open("a") as index:
            index.write(f"\n\n{measured(folder)}\n\n```{{toctree}}\n:hidden:\n\n")
            index.write("\n".join([*others, "api"]) + "\n```\n")
        (place / "api.md").write_text(api_page(name))
        for path in sorted((folder / "benchmarks" / "results").glob("bench_*.json")):
            page_text = benchmark_page(json.loads(path.read_text()))
            title, _, rest = page_text.partition("\n")
            rest = rest.replace("\n## ", "\n**").replace("\n\n|", "\n\n|")
            lines = [f"{line}**" if line.startswith("**") else line for line in rest.split("\n")]
            sections.append(f"## {name}: {title.removeprefix('# ')}\n" + "\n".join(lines))
    GENERATED.mkdir(exist_ok=True)
    (GENERATED / "results.md").write_text("\n\n".join(sections) + "\n")


gather()
