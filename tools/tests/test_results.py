from readme_examples import example
from results import benchmark_page, claims_table, fill, goals_table, table

RESULT = {
    "package": "thing",
    "version": "1.0",
    "title": "Speed",
    "command": "python benchmarks/bench_speed.py --out results",
    "environment": {
        "python": "3.11",
        "platform": "Linux",
        "cpu": "some",
        "threads": 2,
        "versions": {"numpy": "2.0"},
    },
    "goals": [
        {"name": "fast", "goal": ">= 2x", "measured": "1.5x", "met": False, "note": "tried a | b"}
    ],
    "tables": [{"title": "All", "columns": ["n", "ratio"], "rows": [[1, 1.23456], [None, True]]}],
}


def test_table_formats_cells():
    assert table(["a", "b"], [[1.23456, None], [True, "x|y"]]).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| 1.235 | not stated |",
        "| yes | x\\|y |",
    ]


def test_goals_show_what_was_tried():
    assert "| fast | >= 2x | 1.5x (tried a \\| b) | no | `python" in goals_table([RESULT])


def test_page_names_command_machine_and_versions():
    page = benchmark_page(RESULT)
    for part in (RESULT["command"], "Linux", "some", "2 thread(s)", "numpy 2.0", "| 1 | 1.235 |"):
        assert part in page


def test_fill_replaces_only_between_markers():
    text = "a\n<!-- goals -->\nold\n<!-- /goals -->\nb\n"
    once = fill(text, "goals", "new \\1")
    assert once == "a\n<!-- goals -->\n\nnew \\1\n\n<!-- /goals -->\nb\n"
    assert fill(once, "goals", "new \\1") == once


def test_claims_name_paper_and_measured():
    claim = {"name": "c", "paper": None, "measured": 16.9, "unit": "dB", "met": None, "how": "h"}
    shown = claims_table({"claims": [claim], "seed": 3}, "thing")
    assert "`thing demo --out out --seed 3`" in shown
    assert "| c | not stated | 16.9 dB | shown |" in shown


def test_readme_example_is_cut_out_of_its_section():
    text = "# t\n\n## Install\n{0}no\n```\n## Example\n{0}yes\n```\n## Limits\n{0}no\n```\n"
    text = text.format("```python\n")
    assert example(text) == "yes\n"
