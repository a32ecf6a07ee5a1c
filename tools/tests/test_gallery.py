import json

import gallery


def test_failed_demos_are_shown_and_fail_the_session(tmp_path, capsys):
    good = tmp_path / "thing"
    good.mkdir()
    claim = {
        "name": "a < b",
        "paper": 1.0,
        "measured": 2.0,
        "unit": "dB",
        "met": False,
        "how": "photographs",
    }
    result = {
        "schema_version": 1,
        "package": "thing",
        "version": "1.0",
        "seed": 0,
        "claims": [claim],
        "figures": [{"path": "a.png", "title": "figure one"}],
        "seconds": 1.0,
        "environment": {
            "python": "3.11",
            "platform": "p",
            "cpu": "c",
            "threads": 2,
            "versions": {},
        },
    }
    (good / "result.json").write_text(json.dumps(result))
    (good / "report.html").write_text("")
    (good / "a.png").write_bytes(b"")
    assert gallery.main(str(tmp_path), "thing") == 0
    bad = tmp_path / "broken"
    bad.mkdir()
    (bad / "failed.txt").write_text("exit code 1\n")
    assert gallery.main(str(tmp_path), "broken", "thing", "absent") == 1
    page = (tmp_path / "index.html").read_text()
    assert "a &lt; b" in page
    assert "exit code 1" in page
    assert "1 of 3 demos" in page
    assert "thing/a.png" in page
    assert "absent: result.json" in capsys.readouterr().err
    (good / "a.png").unlink()
    assert gallery.main(str(tmp_path), "thing") == 1
