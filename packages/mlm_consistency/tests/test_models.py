"""Pseudo-log-likelihood, repair, training of the miniatures, converters, command line."""

import json
import os
import runpy
import subprocess
import sys
import zipfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from mlm_consistency import InputError, Planner, held_out_sentences, pseudo_log_likelihood, zoo
from mlm_consistency import mini as mini_module
from mlm_consistency.cli import main
from mlm_consistency.finetune import (
    FinetuneConfig,
    TableSample,
    consistency_loss,
    finetune,
    held_out_masked_loss,
    masked_loss,
)
from mlm_consistency.mini_data import batches, read_corpus, span_example

SCHEMA = Path(__file__).parents[3] / "docs" / "schema" / "result.schema.json"


@pytest.mark.parametrize("metric", ["original", "within_word_l2r"])
def test_pll_against_one_forward_per_token(mini, metric):
    scorer, tokenizer = mini
    texts = ["and nebuchadnezzar the king spake .", "the lord is my shepherd ."]
    found = pseudo_log_likelihood(texts, Planner(scorer), tokenizer, metric)
    for text, score in zip(texts, found):
        encoded = tokenizer(text)
        ids, words = encoded["input_ids"], encoded.word_ids()
        expected = []
        for at in range(1, len(ids) - 1):
            row = list(ids)
            row[at] = tokenizer.mask_token_id
            for later in range(at + 1, len(ids)):
                if metric == "within_word_l2r" and words[later] == words[at]:
                    row[later] = tokenizer.mask_token_id
            with torch.no_grad():
                logits = scorer.model(torch.tensor([row])).logits[0, at]
            expected.append(float(torch.log_softmax(logits, -1)[ids[at]]))
        assert np.allclose(score.log_p, expected, atol=2e-5)
        assert score.total == pytest.approx(sum(expected), abs=1e-4)


@pytest.mark.peer
def test_pll_against_minicons(mini, monkeypatch):
    pytest.importorskip("minicons")
    from minicons import scorer as peer

    scorer, tokenizer = mini
    # minicons 0.3.39 calls a method that transformers 5 no longer has; the call itself is the same
    monkeypatch.setattr(
        type(tokenizer), "batch_encode_plus", lambda self, *a, **k: self(*a, **k), raising=False
    )
    texts = held_out_sentences()[:12]
    theirs = peer.MaskedLMScorer(scorer.model, "cpu", tokenizer=tokenizer)
    for metric in ("original", "within_word_l2r"):
        ours = pseudo_log_likelihood(texts, Planner(scorer), tokenizer, metric)
        for a, b in zip(ours, theirs.token_score(texts, PLL_metric=metric)):
            kept = [s for t, s in b if t not in ("[CLS]", "[SEP]")]
            assert np.allclose(a.log_p, kept, atol=1e-4)


def test_penalty_is_the_gap_of_the_tables(mini):
    """The loss of a table equals curl and path of the evaluator's table."""
    from mlm_consistency import ConsistencyEvaluator, compat, metrics

    scorer, tokenizer = mini
    text = "and the king of israel went up to the house of the lord ."
    words = (["king", "man", "son"], ["israel", "god", "the"])
    table = ConsistencyEvaluator(*mini).pair(text, 3, 5, words=words)
    ids = tokenizer(text)["input_ids"]
    # the two sides of the sentence's cell, which the loss takes as first
    candidates = tuple(tokenizer.convert_tokens_to_ids(side) for side in words)
    sample = TableSample([ids, ids], [(3, 5)] * 2, [candidates] * 2)
    curl, path = consistency_loss(scorer.model, sample, tokenizer.mask_token_id, 0, huber=1e6)
    gaps = [compat.gap_at(table, 0, a, 0, b) for a in (1, 2) for b in (1, 2)]
    assert float(2 * curl) == pytest.approx(np.square(gaps).mean(), rel=1e-3)
    paths = metrics.path_gaps(table) ** 2
    assert float(2 * path) == pytest.approx((paths[0, 0] + 2 * paths.mean()) / 3, rel=1e-3)


def test_distillation_alone_leaves_the_teacher_where_it_is():
    from mlm_consistency import load

    (scorer, tokenizer), (teacher, _) = load("mini-bert"), load("mini-bert")
    rows = tokenizer(held_out_sentences()[:4])["input_ids"]
    sizes = []
    for share in (0.0, 1.0):
        scorer.model.zero_grad()
        rng = np.random.default_rng(0)
        masked_loss(scorer.model, rows, tokenizer, rng, 0.15, teacher.model, share).backward()
        sizes.append(max(float(p.grad.abs().max()) for p in scorer.model.parameters()
                         if p.grad is not None))  # fmt: skip
    assert sizes[1] < 1e-5 < 1e-2 < sizes[0]


def test_repair_lowers_both_penalties():
    from mlm_consistency import load

    scorer, tokenizer = load("mini-bert")
    texts = held_out_sentences()[:300]
    config = FinetuneConfig(
        steps=40, warmup=5, batch_size=8, tables=8, candidates=3, learning_rate=1e-3, max_length=24
    )
    history = finetune(scorer.model, tokenizer, texts, config)
    for name in ("curl", "path"):
        values = [point[name] for point in history]
        # a batch's penalty varies by half of itself: eight of them on each side
        assert np.mean(values[-8:]) < 0.75 * np.mean(values[:8]), name
    assert np.isfinite(held_out_masked_loss(scorer.model, texts[:40], tokenizer))
    with pytest.raises(InputError, match="texts"):
        finetune(scorer.model, tokenizer, texts[:2], config)
    for change, name in (({"candidates": 1}, "candidates"), ({"distill": 2.0}, "distill")):
        with pytest.raises(InputError, match=name):
            finetune(scorer.model, tokenizer, texts, replace(config, **change))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "verses.txt"
    lines = held_out_sentences()
    path.write_text("\n".join(f"Ge{n // 20}:{n % 20} {t}" for n, t in enumerate(lines)))
    return path


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_an_interrupted_training_gives_the_same_weights(corpus, tmp_path, kind):
    make = mini_module.bert_config if kind == "bert" else mini_module.t5_config
    config = make(steps=6, warmup=2, batch_size=4, hidden=16, feed_forward=16, heads=2, layers=1,
                  vocab_size=300, checkpoint_every=2)  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = mini_module.train(corpus, tmp_path / "a", config)
    mini_module.train(corpus, tmp_path / "b", config, stop_after=3)
    assert (tmp_path / "b" / "checkpoint.pt").exists()
    other = make(steps=7, warmup=2, vocab_size=300)
    with pytest.raises(InputError, match="same settings and corpus"):
        mini_module.train(corpus, tmp_path / "b", other)
    parts = mini_module.train(corpus, tmp_path / "b", config)
    torch.set_num_threads(threads)
    assert parts["sha256"] == whole["sha256"]
    assert parts["held_out_loss"] == whole["held_out_loss"]
    assert not (tmp_path / "b" / "checkpoint.pt").exists()
    if kind == "bert":
        from mlm_consistency import load

        assert load(str(tmp_path / "a"))[0].vocab_size == 300


def test_bundled_weights_match_their_manifests():
    import hashlib

    for name in mini_module.NAMES:
        folder = mini_module.bundled(name)
        manifest = json.loads((folder / "manifest.json").read_text())
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        assert digest == manifest["sha256"]
        assert manifest["steps"] == manifest["config"]["steps"]
        assert (folder / "model.safetensors").stat().st_size < 4_000_000


def test_corpus_split_is_by_chapter(corpus):
    found = read_corpus(corpus)
    both = set(found.train) & set(found.held_out)
    assert len(both) < 5  # the text repeats some verses
    assert len(found.train) + len(found.held_out) == len(held_out_sentences())


def test_spans_and_batches_by_hand():
    encoder, decoder = span_example(np.arange(10, 20), [(2, 4), (8, 10)], 100)
    assert encoder.tolist() == [10, 11, 100, 14, 15, 16, 17, 101, 3]
    assert decoder.tolist() == [100, 12, 13, 101, 18, 19, 102, 3]
    lengths = np.arange(100) % 7
    stream = batches(lengths, 10, 0, 0)
    first = [next(stream) for _ in range(25)]
    late = batches(lengths, 10, 0, 13)
    assert all(np.array_equal(a, next(late)) for a in first[13:])
    assert sorted(np.concatenate(first[:10]).tolist()) == list(range(100))


def fairseq_state(layers=1, d=8):
    rng = np.random.default_rng(0)

    def w(*shape):
        return torch.tensor(rng.normal(size=shape), dtype=torch.float32)

    state = {"decoder.sentence_encoder.embed_tokens.weight": w(25, d),
             "decoder.sentence_encoder.embed_positions.weight": w(20, d),
             "decoder.sentence_encoder.emb_layer_norm.weight": w(d),
             "decoder.sentence_encoder.emb_layer_norm.bias": w(d),
             "decoder.lm_head.dense.weight": w(d, d), "decoder.lm_head.dense.bias": w(d),
             "decoder.lm_head.layer_norm.weight": w(d), "decoder.lm_head.layer_norm.bias": w(d),
             "decoder.lm_head.weight": w(25, d), "decoder.lm_head.bias": w(25)}  # fmt: skip
    state["decoder.lm_head.weight"] = state["decoder.sentence_encoder.embed_tokens.weight"]
    for n in range(layers):
        head = f"decoder.sentence_encoder.layers.{n}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            state[f"{head}self_attn.{part}.weight"] = w(d, d)
            state[f"{head}self_attn.{part}.bias"] = w(d)
        for part, shape in (("fc1", (16, d)), ("fc2", (d, 16))):
            state[f"{head}{part}.weight"] = w(*shape)
            state[f"{head}{part}.bias"] = w(shape[0])
        for part in ("self_attn_layer_norm", "final_layer_norm"):
            state[f"{head}{part}.weight"], state[f"{head}{part}.bias"] = w(d), w(d)
    return state


def test_converter_reads_a_wheel_without_running_it(tmp_path):
    wheel = tmp_path / "sapiens-1.0.3-py3-none-any.whl"
    torch.save({"model": fairseq_state(), "args": Namespace(arch="x")}, tmp_path / "vh.pt")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "vh.pt", "sapiens/models/v1/checkpoint_vh.pt")
    manifest = zoo.convert(wheel, tmp_path / "out")
    assert manifest["model"] == "sapiens H"
    from mlm_consistency import load

    scorer, tokenizer = load(str(tmp_path / "out"))
    assert tokenizer("EVQ")["input_ids"] == [0, 7, 21, 17, 2]
    assert pseudo_log_likelihood(["EVQLV"], Planner(scorer), tokenizer)[0].tokens == tuple("EVQLV")
    with pytest.raises(InputError, match="has no weights of chain L"):
        zoo.convert(wheel, tmp_path / "out", "L")

    class Trap:
        def __reduce__(self):
            return (print, ("this must never run",))

    torch.save({"model": Trap()}, tmp_path / "vh.pt")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "vh.pt", "sapiens/models/v1/checkpoint_vh.pt")
    with pytest.raises(InputError, match="no checkpoint of plain weights"):
        zoo.convert(wheel, tmp_path / "out")
    (tmp_path / "antiberty.whl").write_text("no archive")
    with pytest.raises(InputError, match="pip download"):
        zoo.convert(tmp_path / "antiberty.whl", tmp_path / "out")
    with pytest.raises(InputError, match="sapiens and antiberty"):
        zoo.convert(tmp_path / "other.whl", tmp_path / "out")


@pytest.mark.peer
@pytest.mark.parametrize(("wheel", "per_token"), [("sapiens-1.0.3", -0.43266),
                                                  ("antiberty-0.1.3", -0.41639)])  # fmt: skip
def test_antibody_models_score_their_readmes_chain(tmp_path, wheel, per_token):
    """Figures measured without this package; WHEELS is a folder filled by `pip download`."""
    path = Path(os.environ.get("WHEELS", "")) / f"{wheel}-py3-none-any.whl"
    if not path.exists():
        pytest.skip("WHEELS names no folder with the wheel")
    from mlm_consistency import load

    zoo.convert(path, tmp_path)
    scorer, tokenizer = load(str(tmp_path))
    chain = (
        "EVQLVQSGPEVKKPGTSVKVSCKASGFTFMSSAVQWVRQARGQRLEWIGWIVIGSGNTNYAQKFQERVTITRDMSTSTAYMELSSLRSEDT"
        "AVYYCAAPYCSSISCNDGFDIWGQGTMVTVS"
    )
    found = pseudo_log_likelihood([chain], Planner(scorer), tokenizer)[0]
    assert len(found.tokens) == 122
    assert found.per_token == pytest.approx(per_token, abs=1e-5)


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    return stop.value.code, text


def test_bad_input_gives_one_line_and_code_2(capsys, tmp_path):
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00words")
    cases = [
        (("measure", "mini-bert", tmp_path / "no.txt", "--out", tmp_path / "o"), "No such file"),
        (("measure", "mini-bert", binary, "--out", tmp_path / "o"), "UTF-8"),
        (("measure", "mini-t5", "held-out", "--out", tmp_path / "o"), "no mask token"),
        (("measure", "./nothing", "held-out", "--out", tmp_path / "o"), "folder with config.json"),
        (("measure", "mini-bert", "held-out", "--out", tmp_path, "--dtype", "int4"), "dtype"),
        (("pair", "mini-bert", "a b"), "one [1]"),
        (("pair", "mini-bert", "a [1] [2]", "--joint", "best"), "joint = 'best'"),
        (("pair", "mini-bert", "a [1] [2]", "--words", "zerubbabelite,x/lord,god"), "one known"),
        (("eoc", "mini-t5", binary), "UTF-8"),
        (("score", "mini-bert", binary), "UTF-8"),
        (("compare", tmp_path, tmp_path), "written by measure"),
        (("train-mini", "gpt", "--corpus", binary, "--out", tmp_path), "'bert' or 't5'"),
        (("zoo", "convert", binary, "--out", tmp_path), "wheels of sapiens"),
        (("demo", "--out", tmp_path, "--seed", "-1"), "seed = -1"),
        (("measure",), "mlm-consistency:"),
    ]
    for arguments, words in cases:
        code, text = fails(capsys, *arguments)
        assert code == 2, arguments
        assert words in text, text
    assert not (tmp_path / "o").exists()


def test_commands_end_to_end(capsys, tmp_path):
    run, other = tmp_path / "a", tmp_path / "b"
    common = ["--pairs", "4", "--top", "5", "--floor-pairs", "1"]
    main(["measure", "mini-bert", "held-out", "--out", str(run), *common, "--json"])
    assert json.loads(capsys.readouterr().out)["summary"]["n"] > 0
    main(["probe", "mini-bert", "held-out", "--pairs", "4", "--out", str(tmp_path / "p.jsonl")])
    main(["measure", "mini-bert", "held-out", "--probes", str(tmp_path / "p.jsonl"),
          "--out", str(other), *common])  # fmt: skip
    main(["compare", str(run), str(other), "--fail-if", "gamma.median>+5%",
          "--out", str(tmp_path / "c.html")])  # fmt: skip
    code, text = fails(capsys, "compare", run, other, "--fail-if", "gamma.median>0.0001")
    assert code == 3
    assert "gate failed" in text
    main(["report", str(run)])
    main(["pair", "mini-bert", "and the [1] of the [2] came .", "--top", "4", "--json",
          "--out", str(tmp_path / "pair.html")])  # fmt: skip
    capsys.readouterr()
    verses = tmp_path / "v.txt"
    verses.write_text("the lord is my shepherd .\n")
    main(["score", "mini-bert", str(verses), "--pll", "within_word_l2r", "--json"])
    assert len(json.loads(capsys.readouterr().out)[0]["log_p"]) == 6
    main(["score", "mini-bert", str(verses), "--page", str(tmp_path / "s.html")])
    assert capsys.readouterr().out.split() == ["wrote", str(tmp_path / "s.html")]
    assert "the lord is my shepherd" in (tmp_path / "s.html").read_text()
    task = tmp_path / "task.jsonl"
    context = "and it came to pass in those days that the word of the lord came unto the"
    row = {"context": context, "completions": ["king", "water"], "answer": 0}
    task.write_text("\n".join([json.dumps(row)] * 6))
    main(["eoc", "mini-t5", str(task), "--patterns", "baseline,offset:1-2", "--pool", "max,geo",
          "--out", str(tmp_path / "e"), "--json"])  # fmt: skip
    assert json.loads(capsys.readouterr().out)["items"] == 6
    main(["doctor", "--json"])
    assert all(c["good"] for c in json.loads(capsys.readouterr().out))


def test_demo_writes_a_valid_result(tmp_path, monkeypatch):
    from mlm_consistency import demo

    for name, value in {"PAIRS": 6, "TOP": 5, "ITEMS": 12, "BIGRAMS": 6}.items():
        monkeypatch.setattr(demo, name, value)
    result = demo.run_demo(tmp_path, 1)
    if SCHEMA.exists():
        jsonschema.validate(result, json.loads(SCHEMA.read_text()))
    assert json.loads((tmp_path / "result.json").read_text()) == result
    for figure in result["figures"]:
        assert (tmp_path / figure["path"]).stat().st_size > 5000
    control = result["claims"][-1]
    assert float(control["measured"]) < 1e-10


def test_examples_run(capsys):
    for path in sorted((Path(__file__).parents[1] / "examples").glob("*.py")):
        runpy.run_path(str(path))
    text = capsys.readouterr().out
    assert "two opinions: compatible False" in text
    assert "exact predictor of a joint: compatible True" in text


def test_help_runs_in_a_process():
    text = subprocess.run(
        [sys.executable, "-m", "mlm_consistency.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "measure" in text
