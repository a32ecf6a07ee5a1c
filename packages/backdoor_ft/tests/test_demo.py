import json

import torch
from backdoor_ft.attacks import plan_attack
from backdoor_ft.demo import watcher
from backdoor_ft.report import bars, figure_png, matrix_figure, time_line, trigger_gallery


def test_committed_demo_result_names_the_headline():
    from pathlib import Path

    path = Path(__file__).parent.parent / "benchmarks/results/demo.json"
    claims = {c["name"]: c for c in json.loads(path.read_text())["claims"]}
    assert sum(c["met"] is True for c in claims.values()) >= 6


def test_figures_are_the_same_bytes(digits, badnets):
    victim, plan = badnets
    rows = []
    watch = watcher(rows, digits[1], plan, every=2)
    for step in range(5):
        watch(step, victim, 0.1, 0.0)
    assert [r["asr"] > 0.9 for r in rows[::2]] == [True] * 3
    one, two = (figure_png(time_line(rows, 2, "x")) for _ in range(2))
    assert one == two
    figure_png(bars(["a"], {"x": [0.5], "y": [1.0]}, "ASR", "t"))
    figure_png(trigger_gallery(digits[1], [plan_attack("blended", digits[0]).trigger]))
    figure_png(matrix_figure([{"defense": "ft", "asr": 0.1, "acc": 0.9}]))
    assert torch.is_tensor(digits[1].inputs)
