"""Span infilling: teacher forcing against the whole model, patterns, sentinels."""

import numpy as np
import pytest
import torch
import transformers
from mlm_consistency import InfillScorer, InputError, ProbeError, held_out_sentences
from mlm_consistency.eoc import (
    CompletionItem,
    EnsembleOfConditionals,
    EnsembleResult,
    MaskingPattern,
    last_word_items,
    parse_patterns,
    read_items,
)
from mlm_consistency.scorers.seq2seq import InfillRequest, sentinel_ids, wrap

V = 80


def tiny(family):
    torch.manual_seed(0)
    if family == "bart":
        model = transformers.BartForConditionalGeneration(
            transformers.BartConfig(
                vocab_size=V, d_model=16, encoder_layers=2, decoder_layers=2,
                encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
                decoder_ffn_dim=24, max_position_embeddings=64, pad_token_id=1, bos_token_id=0,
                eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
            )
        )  # fmt: skip
    else:
        name = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}[family]
        config = getattr(transformers, f"{name}Config")(
            vocab_size=V, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        )  # fmt: skip
        model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("family", ["t5", "mt5", "umt5", "bart"])
def test_every_family_equals_the_whole_model(family, rng):
    model = tiny(family)
    style = "mask" if family == "bart" else "sentinel"
    # sentinels need not be the last ids of the vocabulary
    scorer = InfillScorer(model, [40, 41, 42], 1, style, (0,) if family == "bart" else ())
    requests = []
    for n in (7, 9, 7):
        ids = [int(i) for i in rng.integers(3, 40, n)]
        encoder, target = scorer.pattern(ids, [(2, 4)])
        other = tuple(int(i) for i in rng.integers(3, 40, len(target)))
        requests.append(InfillRequest(encoder, (target, other, target[:3]), 1))
    found = scorer.score(requests)
    start = model.config.decoder_start_token_id
    for request, rows in zip(requests, found):
        for target, values in zip(request.targets, rows):
            with torch.no_grad():
                logits = model(
                    input_ids=torch.tensor([request.encoder]),
                    decoder_input_ids=torch.tensor([[start, *target[:-1]]]),
                ).logits[0]
            expected = torch.log_softmax(logits.double(), -1)[range(len(target)), list(target)]
            assert np.allclose(values, expected[1:].numpy(), atol=2e-5)


def test_patterns_are_the_papers():
    scorer = InfillScorer(tiny("t5"), [70, 71, 72, 73], 1)
    ids = list(range(10, 40))  # 28 tokens of prompt, 2 of completion
    assert MaskingPattern().spans(28, 30) == [(28, 30)]
    encoder, target = scorer.pattern(ids, MaskingPattern(offset=2).spans(28, 30))
    assert encoder == (*range(10, 36), 70, 1)
    assert target == (70, 36, 37, 38, 39, 71, 1)
    spans = MaskingPattern(length=3, gap=5, number=2).spans(28, 30)
    assert spans == [(12, 15), (20, 23), (28, 30)]
    encoder, target = scorer.pattern(ids, spans)
    assert encoder == (*range(10, 22), 70, *range(25, 30), 71, *range(33, 38), 72, 1)
    # the paper skips the first 1 + N (L + 1) target tokens
    assert target[1 + 2 * 4 :] == (38, 39, 73, 1)
    with pytest.raises(ProbeError, match="allowed are fewer"):
        MaskingPattern(offset=6).spans(11, 12)
    with pytest.raises(ProbeError, match="increasing disjoint"):
        scorer.pattern(ids, [(4, 6), (5, 7)])
    with pytest.raises(ProbeError, match="one per sentinel"):
        scorer.pattern(ids, [(n, n + 1) for n in range(0, 12, 2)])


def test_offset_equals_baseline_for_a_model_that_is_consistent():
    """A decoder that ignores where tokens stand, encoder or decoder, has nothing to disagree on."""
    model = tiny("t5")
    with torch.no_grad():  # unigram model: only the bias-like constant direction is left
        for layer in [*model.encoder.block, *model.decoder.block]:
            for module in layer.modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight.zero_()
        model.shared.weight[:] = model.shared.weight[0]
    scorer = InfillScorer(model, [70, 71, 72, 73], 1)
    ids = list(range(10, 40))
    scores = []
    for pattern in parse_patterns("baseline,offset:3,span:3x5x1"):
        spans = pattern.spans(28, 30)
        encoder, target = scorer.pattern(ids, spans)
        skip = len(spans) + sum(min(b, 28) - a for a, b in spans)
        scores.append(scorer.score([InfillRequest(encoder, (target[: skip + 2],), skip)])[0][0])
    assert np.allclose(scores[0], scores[1], atol=1e-6)
    assert np.allclose(scores[0], scores[2], atol=1e-6)


def test_sentinel_ids_come_from_the_tokenizer(mini_t5):
    scorer, tokenizer = mini_t5
    assert scorer.sentinels == tuple(range(4096, 4116))

    class Unusual:
        eos_token_id, mask_token_id, bos_token_id = 1, None, None

        def get_vocab(self):
            return {"<extra_id_1>": 7, "a": 3, "<extra_id_0>": 60, "<extra_id_10>": 9}

    assert sentinel_ids(Unusual()) == [60, 7, 9]
    assert wrap(tiny("t5"), Unusual()).sentinels == (60, 7, 9)
    Unusual.get_vocab = lambda self: {"a": 3}
    with pytest.raises(InputError, match="neither <extra_id_0> nor a mask"):
        wrap(tiny("t5"), Unusual())
    assert sentinel_ids(tokenizer)[0] == tokenizer.convert_tokens_to_ids("<extra_id_0>")


def test_ensemble_scores_by_hand(mini_t5):
    scorer, tokenizer = mini_t5
    context = "and it came to pass in those days , that there went out a decree from the king of"
    eoc = EnsembleOfConditionals(scorer, "baseline,offset:2", tokenizer=tokenizer)
    item = CompletionItem(context, ("egypt", "judah"), 0)
    scores = eoc.scores([item])[0]
    ids = tokenizer(context, add_special_tokens=False)["input_ids"]
    word = tokenizer("judah", add_special_tokens=False)["input_ids"]
    s0, s1 = scorer.sentinels[:2]
    target = [s0, *ids[-2:], *word, s1]
    with torch.no_grad():
        logits = scorer.model(
            input_ids=torch.tensor([[*ids[:-2], s0, scorer.eos_id]]),
            decoder_input_ids=torch.tensor([[0, *target[:-1]]]),
        ).logits[0]
    expected = torch.log_softmax(logits, -1)[3, word[0]]
    assert scores[1, 1] == pytest.approx(float(expected), abs=1e-4)
    prediction = eoc.predict(context, ["egypt", "judah"])
    assert prediction.completion == ("egypt", "judah")[int(np.argmax(scores.max(0)))]


def test_curve_and_disagreement_by_hand():
    scores = np.zeros((2, 3, 2))
    scores[0, :, 0] = 1
    scores[1, 0, 0] = 1
    scores[1, 1:, 1] = 2
    result = EnsembleResult(["baseline", "offset:1", "offset:2"], scores, np.array([0, 1]))
    rows = result.curve("max")
    assert [r["accuracy"] for r in rows] == [0.5, 1.0, 1.0]
    assert [r["disagreement"] for r in rows] == [0.0, 0.5, 0.5]
    assert result.best_single() == "offset:1"
    assert result.accuracy("max").estimate == 1.0
    assert {r["name"] for r in result.table(("max",))} >= {"baseline", "max"}


def test_items_and_patterns_from_text(tmp_path, mini_t5):
    from mlm_consistency import held_out_sentences

    items = last_word_items(held_out_sentences()[:600], mini_t5[1], seed=3)
    assert all(len(set(i.completions)) == 4 for i in items)
    assert len({i.answer for i in items}) == 4
    path = tmp_path / "task.jsonl"
    path.write_text('{"context": "a b", "completions": ["x", "y"], "answer": 1}\n')
    assert read_items(path)[0].answer == 1
    path.write_text('{"context": "a b", "completions": ["x", "y"], "answer": 2}\n')
    with pytest.raises(InputError, match="line 1 is no item"):
        read_items(path)
    for text in ("offset:0", "offset:3-2", "span:3x5", "other", "baseline,baseline"):
        with pytest.raises(InputError, match="patterns"):
            parse_patterns(text)


def test_items_cut_anywhere_are_one_a_sentence_and_keep_the_rules(mini_t5):
    tokenizer = mini_t5[1]
    sentences = held_out_sentences()[:150]
    last = last_word_items(sentences, tokenizer)
    items = last_word_items(sentences, tokenizer, anywhere=True, longest=30)
    assert len(last) < len(items) <= len(sentences)
    for item in items:
        ids = tokenizer(item.context, add_special_tokens=False)["input_ids"]
        assert len(ids) <= 30
        word = item.completions[item.answer]
        assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1
        assert any(f"{item.context} {word}" in s.lower() for s in sentences)
        assert len(set(item.completions)) == 4


def test_bigram_and_long_span_tests(mini_t5):
    from mlm_consistency import paper

    scorer, tokenizer = mini_t5
    ids = tokenizer(
        "and the king of israel went up to the house of the lord and prayed before the people",
        add_special_tokens=False,
    )["input_ids"]
    found = paper.t5_bigram_test(scorer, [ids], [(0, 2, ids[4]), (0, len(ids) - 1, ids[3])])
    assert found.tokens_only.n == 1
    assert sum(found.skipped.values()) == 1
    with_end, without = found.with_sentinel.median, found.tokens_only.median
    assert with_end != without  # the closing sentinel is not silently left out or in
    other = [*ids[:-5], *ids[3:8]]
    gap = paper.long_span_gap(scorer, ids, other)
    assert np.isfinite(gap)
    assert gap == pytest.approx(-paper.long_span_gap(scorer, other, ids), abs=1e-4)
