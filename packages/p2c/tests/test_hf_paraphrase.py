"""Paraphrases by models of transformers, with random weights and tokenizers made here."""

import pytest
import torch
from p2c import HFMaskedLM, InputError, MaskedLMParaphraser, T5SpanParaphraser, Vocabulary
from p2c.paraphrase import lexicon_tagger
from p2c.vocabulary import MASK

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["a", "man's", "t-shirt", "stands", "sits", "is", "on", "zebra"]
VOCABULARY = Vocabulary(WORDS)
TAGGER = lexicon_tagger({"stands", "sits"}, {"zebra", "t-shirt"})


def fast(pieces, **special):
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({p: k for k, p in enumerate(pieces)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", **special)


def bert():
    """Return a model that splits "man's" and "t-shirt" into three pieces each, as BERT does."""
    pieces = ["[PAD]", "[UNK]", "[MASK]", "a", "man", "'", "s", "t", "-", "shirt", "stands", "sits",
              "is", "on", "zebra"]  # fmt: skip
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=len(pieces), max_position_embeddings=32,
    )  # fmt: skip
    tokenizer = fast(pieces, pad_token="[PAD]", mask_token="[MASK]")
    return transformers.BertForMaskedLM(config), tokenizer, pieces


def test_masked_lm_reads_the_place_of_the_word_and_not_of_a_piece():
    model, tokenizer, pieces = bert()
    scores_of = HFMaskedLM(model, tokenizer, VOCABULARY)
    ids = VOCABULARY.encode_all(["a man's t-shirt stands on a zebra", "a zebra sits"], 8)
    masked = ids.clone()
    masked[0, 3] = masked[1, 2] = MASK
    got = scores_of(masked)
    line = ["a", "man", "'", "s", "t", "-", "shirt", "[MASK]", "on", "a", "zebra"]
    with torch.no_grad():
        want = model(input_ids=torch.tensor([[pieces.index(p) for p in line]])).logits[0, 7]
    for word in ("stands", "sits", "zebra"):
        number = VOCABULARY.index[word]
        assert float(got[0, 3, number]) == pytest.approx(float(want[pieces.index(word)]), abs=1e-5)
    assert got[0, 3, VOCABULARY.index["t-shirt"]] == -torch.inf
    assert torch.isinf(got[0, 2]).all()


def test_masked_lm_proposes_through_the_paraphraser():
    model, tokenizer, _ = bert()
    scores_of = HFMaskedLM(model, tokenizer, VOCABULARY)
    ids = VOCABULARY.encode_all(["a man's t-shirt stands on a zebra", "", "a zebra"], 8)
    made = MaskedLMParaphraser(scores_of, VOCABULARY, TAGGER).propose(ids)
    assert (made.masked == MASK).nonzero().tolist() == [[0, 3]]
    assert VOCABULARY.words[int(made.teacher[0, 3])] in WORDS


def t5(**settings):
    pieces = ["[PAD]", "[UNK]", "</s>", *(f"<extra_id_{k}>" for k in range(3)), *WORDS, "very"]
    torch.manual_seed(0)
    config = transformers.T5Config(
        d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=len(pieces),
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({p: k for k, p in enumerate(pieces)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", eos_token="</s>",
        additional_special_tokens=[f"<extra_id_{k}>" for k in range(3)],
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    return T5SpanParaphraser(model, tokenizer, VOCABULARY, TAGGER, **settings), pieces


def written(monkeypatch, paraphraser, pieces, text):
    """Let the model write a text, whatever it reads; return the lines that it read."""
    read = []

    def generate(input_ids, **_):
        read.extend(paraphraser.tokenizer.batch_decode(input_ids))
        row = [pieces.index(p) for p in text.split()]
        return torch.tensor([row] * len(input_ids))

    monkeypatch.setattr(paraphraser.model, "generate", generate)
    return read


def test_t5_spans_become_words_at_their_places(monkeypatch):
    p, pieces = t5()
    read = written(
        monkeypatch, p, pieces, "[PAD] <extra_id_0> sits <extra_id_1> stands <extra_id_2> </s>"
    )
    ids = VOCABULARY.encode_all(["a man's t-shirt stands sits on a zebra", "a zebra"], 10)
    made = p.propose(ids)
    assert read == ["a man's t-shirt <extra_id_0> <extra_id_1> on a zebra"]
    assert VOCABULARY.decode(made.ids[0].tolist()) == "a man's t-shirt sits stands on a zebra"
    assert (made.masked == MASK).nonzero().tolist() == [[0, 3], [0, 4]]
    assert torch.equal(made.ids[1], ids[1])


@pytest.mark.parametrize(
    "text",
    [
        "[PAD] <extra_id_0> very sits <extra_id_1> </s>",  # two words
        "[PAD] <extra_id_0> </s>",  # nothing
        "[PAD] <extra_id_1> sits </s>",  # another sentinel
        "[PAD] <extra_id_0> very </s>",  # a word outside the vocabulary
        "[PAD] sits </s>",  # no sentinel
    ],
)
def test_t5_fillings_that_are_not_one_word_are_left_out(monkeypatch, text):
    p, pieces = t5()
    written(monkeypatch, p, pieces, text)
    ids = VOCABULARY.encode_all(["a zebra stands"], 5)
    made = p.propose(ids)
    assert p.left_out == 1
    assert torch.equal(made.ids, ids)
    assert not made.teacher.any()


def test_a_repeated_sentinel_counts_once():
    p, pieces = t5()
    row = [pieces.index(w) for w in ["<extra_id_0>", "sits", "<extra_id_0>", "on", "</s>"]]
    assert p.spans(row, 1) == ["sits"]


@pytest.mark.parametrize("sample", [False, True])
def test_t5_of_random_weights_runs_and_repeats(sample):
    p, _ = t5(sample=sample)
    ids = VOCABULARY.encode_all(["a zebra stands on a zebra", ""], 8)
    a, b = (p.propose(ids, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a.ids, b.ids)
    assert p.propose(ids[1:]) is None


def test_t5_needs_sentinels():
    p, _ = t5()
    bare = fast(["[PAD]", "[UNK]", "a"], pad_token="[PAD]")
    with pytest.raises(InputError, match="sentinels"):
        T5SpanParaphraser(p.model, bare, VOCABULARY, TAGGER)
