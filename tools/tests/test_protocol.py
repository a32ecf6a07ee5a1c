import json
import re
from pathlib import Path

import pytest
from protocol import ROOT, import_faults, project_faults, readme_faults, validate

PROJECT = {
    "project": {
        "name": "a-thing",
        "version": "1.0",
        "description": "x",
        "license": "Apache-2.0",
        "license-files": ["LICENSE"],
        "requires-python": ">=3.11",
        "dependencies": ["numpy>=1.26"],
        "scripts": {"a-thing": "a_thing.cli:main"},
        "optional-dependencies": {"test": ["a-thing[bench]"], "bench": ["scipy>=1.11,<2"]},
    },
    "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
    "tool": {"pytest": {"ini_options": {"addopts": "-m 'not stress and not peer'"}}},
}
README = "# t\n" + "".join(
    f"## {title}\n{body}\n"
    for title, body in [
        ("Install", ""),
        ("Example", "```python\nprint(1)\n```"),
        ("Command line", ""),
        ("Paper and measured", "<!-- claims -->\n<!-- /claims -->"),
        ("Goals", "<!-- goals -->\n<!-- /goals -->"),
        ("Limits", ""),
        ("Citation", ""),
    ]
)


def changed(path, value):
    copy = json.loads(json.dumps(PROJECT))
    *parents, last = path
    place = copy
    for key in parents:
        place = place[key]
    place[last] = value
    return copy


def test_good_project_has_no_fault():
    assert project_faults("a_thing", PROJECT) == []


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (["project", "name"], "other", "name must be"),
        (["project", "dependencies"], ["torch==2.13.0"], "is a pin"),
        (["project", "dependencies"], ["torch"], "no lower bound"),
        (["project", "requires-python"], ">=3.9", "requires-python"),
        (["project", "scripts"], {}, "console script"),
        (["project", "optional-dependencies"], {"test": []}, "extra bench"),
        (["build-system", "requires"], ["hatchling", "torch"], "build requires torch"),
        (["build-system", "build-backend"], "setuptools.build_meta", "build-backend"),
        (["tool"], {}, "leave out stress"),
    ],
)
def test_each_rule_is_checked(path, value, word):
    faults = project_faults("a_thing", changed(path, value))
    assert any(word in fault for fault in faults), faults


def test_readme_sections_and_markers():
    assert readme_faults(README) == []
    assert "sections" in readme_faults(README.replace("## Limits", "## Bounds"))[0]
    assert "claims" in readme_faults(README.replace("<!-- claims -->", ""))[0]
    assert "no Python" in readme_faults(README.replace("```python", "```"))[0]


def test_import_of_another_package_is_found(tmp_path):
    source = tmp_path / "one" / "src" / "one"
    source.mkdir(parents=True)
    (source / "__init__.py").write_text("__all__ = []\n")
    (source / "deep.py").write_text("def f():\n    from two.core import g\n    return g\n")
    assert import_faults(tmp_path / "one", {"one", "two"}) == [
        "src/one/deep.py imports the package two"
    ]


def test_packages_are_listed_nowhere_else():
    """The noxfile and CI find packages by their pyproject.toml."""
    names = {path.parent.name for path in ROOT.glob("packages/*/pyproject.toml")}
    for file in ("noxfile.py", ".ci/run", ".github/workflows/ci.yml", "docs/conf.py"):
        text = Path(ROOT / file).read_text()
        assert not [name for name in names if re.search(rf"\b{name}\b", text)], file


def test_schema_rejects_an_unmeasured_claim(tmp_path):
    claim = {"name": "n", "paper": 1, "measured": 2, "unit": "", "met": True, "how": "h"}
    result = {
        "schema_version": 1,
        "package": "thing",
        "version": "1.0",
        "seed": 0,
        "claims": [claim],
        "figures": [{"path": "a.png", "title": "t"}],
        "seconds": 1.0,
        "environment": {
            "python": "3.11",
            "platform": "p",
            "cpu": "c",
            "threads": 2,
            "versions": {"numpy": "2"},
        },
    }
    file = tmp_path / "result.json"
    file.write_text(json.dumps(result))
    assert validate(file, "result") == []
    for broken in (
        {"claims": [claim | {"measured": None}]},
        {"claims": []},
        {"figures": [{"path": "../a.png", "title": "t"}]},
        {"seconds": -1},
    ):
        file.write_text(json.dumps(result | broken))
        assert len(validate(file, "result")) == 1, broken
    file.write_text("{")
    assert validate(file, "result")
