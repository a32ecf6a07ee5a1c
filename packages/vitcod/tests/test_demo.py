import json
from pathlib import Path

import jsonschema
from vitcod import Recipe, demo


def test_demo_writes_a_valid_result(tmp_path, monkeypatch):
    # A short training: the files are what is tested, not the figures in them.
    short = Recipe.cpu(1, 2e-3)
    monkeypatch.setattr(demo.Recipe, "cpu", classmethod(lambda cls, *a: short))
    monkeypatch.setattr(demo, "LEVELS", (0.5, 0.9))
    result = demo.run_demo(tmp_path, seed=1)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    for figure in result["figures"]:
        assert (tmp_path / figure["path"]).read_bytes()[:4] == b"\x89PNG"
        assert figure["path"] in (tmp_path / "report.html").read_text()
    assert any("235.3" in str(claim["paper"]) for claim in result["claims"])
    schema = Path(__file__).parents[3] / "docs" / "schema" / "result.schema.json"
    if schema.exists():
        jsonschema.validate(result, json.loads(schema.read_text()))
