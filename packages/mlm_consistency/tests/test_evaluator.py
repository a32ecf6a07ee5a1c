"""Probes, tables, reports and faults on the bundled miniature."""

import json

import numpy as np
import pytest
import torch
from mlm_consistency import (
    ConsistencyEvaluator,
    ConsistencyReport,
    EvaluatorConfig,
    InputError,
    Planner,
    ProbeError,
    ProbeSet,
    Request,
    compare,
    compat,
    held_out_sentences,
    metrics,
    pair_probes,
)
from mlm_consistency.probes import (
    Vocabulary,
    keeps_segmentation,
    mark_pair,
    parse_marked,
    single_token,
)
from mlm_consistency.result import Gate

TEXT = "and the king of israel went up to the house of the lord ."


@pytest.fixture(scope="module")
def evaluator(mini):
    return ConsistencyEvaluator(*mini, EvaluatorConfig(top_k=8, floor_pairs=3))


@pytest.fixture(scope="module")
def report(evaluator):
    return evaluator.measure(held_out_sentences(), 8)


def test_table_entries_are_the_models_own_conditionals(evaluator, mini):
    scorer, tokenizer = mini
    table = evaluator.pair(TEXT, 3, 5, top_k=5)
    ids = tokenizer(TEXT)["input_ids"]
    assert (table.labels_a[0], table.labels_b[0]) == ("king", "israel")
    for row in (0, 3):
        a = tokenizer.convert_tokens_to_ids(table.labels_a[row])
        masked = [*ids[:3], a, ids[4], tokenizer.mask_token_id, *ids[6:]]
        with torch.no_grad():
            log_p = torch.log_softmax(scorer.model(torch.tensor([masked])).logits[0, 5], -1)
        expected = log_p[tokenizer.convert_tokens_to_ids(list(table.labels_b))]
        assert np.allclose(table.log_b_given_a[row], expected, atol=2e-5)


def test_pair_by_marker_and_by_position_agree(evaluator):
    words = (["king", "house", "man"], ["israel", "judah"])
    marked = evaluator.pair(TEXT.replace("king", "[1]").replace("israel", "[2]"), words=words)
    placed = evaluator.pair(TEXT, 3, 5, words=words)
    assert np.allclose(marked.log_a_given_b, placed.log_a_given_b, atol=1e-5)
    assert marked.labels_a == ("king", "house", "man")
    swapped = evaluator.pair(
        TEXT.replace("king", "[2]").replace("israel", "[1]"), words=words[::-1]
    )
    assert np.allclose(swapped.log_a_given_b, placed.log_b_given_a.T, atol=1e-5)


def test_report_keeps_levels_apart_and_counts_skips(report):
    assert (
        len(report.rows) + report.skipped.get("too few candidates that keep the other tokens", 0)
        == 8
    )
    assert report.summary["gamma"]["level"] == "U"
    assert report.summary["path"]["level"] == "P"
    assert report.summary["marginal_tv"]["level"] == "M"
    # a float32 model is computed to a few millionths of a nat; the gaps are real
    assert report.floor["gamma_p95"] < 1e-3
    assert report.summary["gamma"]["share_above_floor"] > 0.8
    assert all(row["u_ag_gap"] <= 1e-10 for row in report.rows)
    names = {k.split("_")[0] for k in report.rows[0]}
    assert names <= {"id", "length", "i", "j", "text", "u", "p", "m", "joint"}


def test_bfloat16_quantisation_shows_in_the_noise_floor(mini, report):
    import copy

    scorer, tokenizer = mini
    coarse = copy.deepcopy(scorer.model).to(torch.bfloat16)
    found = ConsistencyEvaluator(
        coarse, tokenizer, EvaluatorConfig(top_k=6, floor_pairs=3)
    ).measure(held_out_sentences(), 4)
    assert found.floor["gamma_p95"] > 100 * report.floor["gamma_p95"]
    assert found.floor["gamma_p95"] > 0.01


def test_save_load_compare_and_gates(report, tmp_path):
    report.save(tmp_path)
    again = ConsistencyReport.load(tmp_path)
    assert again.summary == report.summary
    assert len(again.to_frame()) == len(report.rows)
    assert (tmp_path / "probes.csv").exists()
    page = (tmp_path / "report.html").read_text()
    assert "Noise" not in page or "noise floor" in page
    assert page.count("data:image/png") >= 4
    same = compare(report, again, ["gamma.median>+5%"])
    assert same["failed"] == []
    assert same["paired"] == len(report.rows)
    worse = ConsistencyReport.load(tmp_path)
    worse.summary["gamma"]["median"] *= 1.2
    assert len(compare(report, worse, ["gamma.median>+5%"])["failed"]) == 1
    assert len(compare(report, worse, ["gamma.median>100"])["failed"]) == 0
    for text in ("gamma>5", "gamma.median=5", "nothing.median>1"):
        with pytest.raises(InputError, match="fail_if"):
            compare(report, worse, [text])
    assert Gate.parse("path.mean<0.5").fails(1.0, 0.4)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(InputError, match="written by measure"):
        ConsistencyReport.load(tmp_path)


def test_cube_of_three_positions_agrees_with_the_pair(evaluator, mini):
    _, tokenizer = mini
    words = ["king", "house", "man"]
    ids = [tokenizer.convert_tokens_to_ids(w) for w in words]
    cube = evaluator.cube(TEXT, (3, 5, 10), ids)
    assert cube.shape == (3, 3, 3)
    table = evaluator.pair(TEXT.replace("house", "man"), 3, 5, words=(words, words))
    part = cube.conditionals[0][:, :, 2]
    assert np.allclose(part, table.renormalised().log_a_given_b, atol=1e-5)
    found = metrics.cube_metrics(cube)
    assert found["u_ag_gap"] <= 1e-10
    assert found["u_gamma_max"] == pytest.approx(abs(compat.worst_quadruple(cube).gap))


def test_faults_of_probes_are_named(evaluator, mini):
    _, tokenizer = mini
    with pytest.raises(ProbeError, match="are one known token"):
        single_token(tokenizer, "nebuchadnezzarite")
    with pytest.raises(ProbeError, match=r"one \[2\]"):
        evaluator.pair("the [1] came")
    with pytest.raises(ProbeError, match="nothing is truncated"):
        evaluator.pair("the [1] of " + "the land " * 400 + " [2] .")
    with pytest.raises(ProbeError, match="gives no probe"):
        evaluator.measure(["of the .", "it is"], 3)
    with pytest.raises(InputError, match="no mask token"):
        ConsistencyEvaluator(evaluator.scorer.model, type("T", (), {"mask_token_id": None})())
    with pytest.raises(InputError, match="top_k"):
        EvaluatorConfig(top_k=1)


def test_candidates_that_change_their_neighbours_are_dropped(mini):
    _, tokenizer = mini
    vocabulary = Vocabulary(tokenizer)
    ids = tokenizer("the king of israel .")["input_ids"]
    piece = next(i for i, t in enumerate(vocabulary.tokens) if t == "##s")
    good = tokenizer.convert_tokens_to_ids("house")
    # "##s" after "king" is written "kings", which is one token
    assert keeps_segmentation(tokenizer, ids, 3, [good, piece]).tolist() == [True, False]


def test_probe_choice_is_counted_and_repeatable(mini, tmp_path):
    _, tokenizer = mini
    texts = ["the king of israel went up .", "word " * 200, "it is of the .", "q\u4e00 zz"]
    found = pair_probes(texts * 3, tokenizer, 100, max_length=60, skip_common=False)
    assert found.skipped["too long"] == 3
    assert sum(found.skipped.values()) + len(found.probes) == found.sentences
    path = found.save(tmp_path / "probes.jsonl")
    assert ProbeSet.load(path) == found
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(InputError, match="is no probe"):
        ProbeSet.load(path)


def test_marks_and_vocabulary(mini):
    _, tokenizer = mini
    ids = tokenizer(TEXT)["input_ids"]
    text = mark_pair(tokenizer, ids, 3, 5)
    assert "[1] of [2] went" in text
    parsed, i, j = parse_marked(text, tokenizer)
    assert (i, j) == (3, 5)
    assert parsed[3] == tokenizer.mask_token_id
    assert Vocabulary(tokenizer).mark == "##"


def test_batches_and_duplicates_do_not_change_a_table(mini):
    scorer, tokenizer = mini
    ids = tuple(tokenizer(TEXT)["input_ids"])
    row = (*ids[:3], tokenizer.mask_token_id, *ids[4:])
    other = (*ids[:5], tokenizer.mask_token_id, *ids[6:])
    requests = [Request(row, 3, (10, 20)), Request(other, 5, (30,)), Request(row, 3, (20,))]
    big, small = Planner(scorer).score(requests), Planner(scorer, max_batch=1).score(requests)
    for a, b in zip(big, small):
        assert np.allclose(a.log_p, b.log_p, atol=1e-5)
    assert big[0].log_p[1] == big[2].log_p[0]


def test_the_two_masked_pattern_is_not_used_for_the_unary_level(evaluator):
    table = evaluator.pair(TEXT, 3, 5, top_k=5)
    from dataclasses import replace

    moved = replace(table, log_m_i=table.log_m_i[::-1].copy())
    one, two = metrics.pair_metrics(table, False), metrics.pair_metrics(moved, False)
    assert {k for k in one if one[k] != two[k]} <= {k for k in one if k.startswith(("p_", "m_"))}
    assert json.dumps(compat.test(table).to_json())
