"""Models that a configuration names: tiny ones of random weights, saved and read as real ones."""

import json

import pytest
import torch
import yaml
from p2c import InputError, Pipeline, PipelineConfig, association_probability
from p2c.hf_named import load_captioner, load_judge, load_paraphraser
from p2c.paraphrase import lexicon_tagger
from p2c.vocabulary import MASK, PAD, SEP, UNK
from p2c.world import GENERIC, NAMES, RICH_VERBS, world_vocabulary

from .test_hf import models
from .test_pipeline import TINY

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

VOCABULARY = world_vocabulary()
WORDS = VOCABULARY.words[UNK + 1 :]
SHORT = {**TINY, "ablations": False, "test": 8, "judge_steps": 2, "xe_steps": 3,
         "stage1_steps": 2, "stage2_steps": 2}  # fmt: skip


def tokenizer_of(pieces, **special):
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({p: k for k, p in enumerate(pieces)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", **special)


def save(folder, model, tokenizer, pictures=False):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if pictures:
        (folder / "preprocessor_config.json").write_text(
            json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]})
        )
    return f"hf:{folder}"


def captioner(folder, kind):
    """Save a captioner whose tokenizer knows fourteen of the words; the rest get new tokens."""
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *WORDS[:14]]
    special = {"pad_token": "[PAD]", "mask_token": "[MASK]"}
    model = models()[kind]
    if kind == "ved":
        model.config.decoder_start_token_id = 1
        model.config.decoder.eos_token_id, model.config.decoder.pad_token_id = 2, 0
    return save(folder, model, tokenizer_of(pieces, **special), pictures=True)


def judge(folder):
    torch.manual_seed(1)
    pieces = ["[UNK]", "[EOS]", *WORDS]
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2}  # fmt: skip
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**size, "vocab_size": len(pieces), "max_position_embeddings": 16,
                         "eos_token_id": 1, "bos_token_id": 1, "pad_token_id": 1},
            vision_config={**size, "image_size": 16, "patch_size": 8}, projection_dim=8,
        )
    )  # fmt: skip
    tokenizer = tokenizer_of(pieces, pad_token="[EOS]", eos_token="[EOS]")
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A [EOS]", special_tokens=[("[EOS]", 1)]
    )
    return save(folder, model, tokenizer, pictures=True)


def language_model(folder, kind):
    torch.manual_seed(2)
    if kind == "bert":
        pieces = ["[PAD]", "[UNK]", "[MASK]", *WORDS]
        config = transformers.BertConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            vocab_size=len(pieces), max_position_embeddings=32,
        )  # fmt: skip
        made = tokenizer_of(pieces, pad_token="[PAD]", mask_token="[MASK]")
        return save(folder, transformers.BertForMaskedLM(config), made)
    marks = [f"<extra_id_{k}>" for k in range(3)]
    pieces = ["[PAD]", "[UNK]", "</s>", *marks, *WORDS]
    config = transformers.T5Config(
        d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=len(pieces),
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    special = {"pad_token": "[PAD]", "eos_token": "</s>", "additional_special_tokens": marks}
    made = tokenizer_of(pieces, **special)
    return save(folder, transformers.T5ForConditionalGeneration(config), made)


@pytest.mark.parametrize("kind", ["blip", "git", "ved"])
def test_student_speaks_the_vocabulary(tmp_path, kind):
    """What it samples, its log-probabilities of that, and a forced beginning agree."""
    net = load_captioner(captioner(tmp_path, kind), VOCABULARY, 6)
    images = torch.rand(3, 3, 48, 48)
    memory = net.encode(torch.zeros(3, 0, dtype=torch.long), images)
    drawn = net.generate(memory, 4, generator=torch.Generator().manual_seed(0))
    words = drawn.ids[drawn.ids != PAD]
    assert bool(((words > UNK) | (words == SEP)).all())
    assert int(words.max()) > UNK + 14  # words that the tokenizer lacks have tokens of their own
    torch.testing.assert_close(
        net.log_prob(memory, drawn.ids), drawn.log_prob, atol=1e-4, rtol=1e-4
    )
    forced = VOCABULARY.encode_all(["a zebra", "", "a bus"], 6)[:, None]
    forced[1] = PAD
    begun = net.generate(memory, 1, greedy=True, forced=forced).ids[:, 0]
    assert VOCABULARY.decode_all(begun)[::2] == ["a zebra", "a bus"]
    free = net.generate(memory, 1, greedy=True).ids[:, 0]
    assert VOCABULARY.decode(begun[1].tolist()) == VOCABULARY.decode(free[1].tolist())
    net.log_prob(memory, drawn.ids).sum().backward()
    grown = net.captioner.model.get_input_embeddings() if kind == "git" else None
    if grown is not None:
        assert grown.weight.grad[-1].abs().sum() > 0


def test_new_tokens_begin_as_the_mean_of_their_pieces(tmp_path):
    """A tokenizer of letters: words become new tokens, and the old vectors stay."""
    letters = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *"acdehlnorstuwyz"]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({p: k for k, p in enumerate(letters)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.WhitespaceSplit(),
            tokenizers.pre_tokenizers.Split("", "isolated"),
        ]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]"
    )
    model = models()["blip"]
    before = model.text_decoder.get_input_embeddings().weight.detach().clone()
    net = load_captioner(save(tmp_path, model, tokenizer, pictures=True), VOCABULARY, 6)
    after = net.model.text_decoder.get_input_embeddings().weight.detach()
    torch.testing.assert_close(after[:20], before)
    cat = after[net.tokens[VOCABULARY.index["cat"]]]
    torch.testing.assert_close(cat, before[[letters.index(c) for c in "cat"]].mean(0))
    assert int(net.tokens[VOCABULARY.index["a"]]) == letters.index("a")


def test_judge_equals_the_model_on_written_captions(tmp_path):
    name = judge(tmp_path)
    found = load_judge(name, VOCABULARY)
    images, texts = torch.rand(3, 3, 16, 16), ["a zebra stands", "", "a bus stands near a cat"]
    ids = VOCABULARY.encode_all(texts, 8)
    model = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    made = found.tokenizer(texts, padding=True, return_tensors="pt")
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))
    with torch.no_grad():
        scores = model(
            input_ids=made["input_ids"], pixel_values=(images - mean) / std
        ).logits_per_image
    want = 0.5 * (scores.softmax(1).diagonal() + scores.softmax(0).diagonal())
    got = association_probability(found.encode_image(images), found.encode_text(ids), found.scale)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "lm"), [("blip", "bert"), ("git", "t5")])
def test_one_yaml_runs_every_stage_of_named_models(tmp_path, kind, lm):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({
        **SHORT, "captioner": captioner(tmp_path / "captioner", kind),
        "judge": judge(tmp_path / "judge"), "language_model": language_model(tmp_path / "lm", lm),
        "margin": -1.0, "clipscore": 0.5, "xe_steps": 12, "checkpoint_every": 1,
    }))  # fmt: skip
    run = Pipeline.from_yaml(tmp_path / "c.yaml")
    result = run.run(tmp_path / "out")
    assert set(result.captions) == {"VIVO + XE", "stage 1", "stage 2"}
    assert set(result.curves) == {"LM", "evaluator", "VIVO + XE", "stage 1", "stage 2", "rewards"}
    terms = set().union(*result.curves["rewards"])
    assert terms == {"association", "clipscore", "coverage", "repetition", "cider"}
    before = load_captioner(run.config.captioner, VOCABULARY, 10).state_dict()
    after = result.captioner.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("lm", ["bert", "t5"])
def test_named_language_models_propose_words_of_the_vocabulary(tmp_path, lm):
    tagger = lexicon_tagger({*RICH_VERBS, GENERIC}, NAMES)
    found = load_paraphraser(language_model(tmp_path, lm), VOCABULARY, tagger, "verb", "top")
    made = found.propose(VOCABULARY.encode_all(["a zebra stands near a bus"], 8))
    if lm == "bert":
        assert made.masked[0].tolist().count(MASK) == 1
        assert int(made.teacher.max()) > UNK
    else:
        assert found.left_out in (0, 1)


@pytest.mark.parametrize("setting", ["captioner", "judge", "language_model"])
def test_models_that_are_not_there_are_one_line(tmp_path, setting, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = PipelineConfig.from_dict({**SHORT, setting: f"hf:{tmp_path / 'none'}"})
    with pytest.raises(InputError, match=f"{setting} = .*a folder or name of a model") as error:
        Pipeline(config).run()
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(InputError, match=rf"{setting} = 'gpt': allowed is native"):
        PipelineConfig.from_dict({setting: "gpt"})


def test_models_of_another_kind_are_refused(tmp_path):
    bert = language_model(tmp_path / "bert", "bert")
    (tmp_path / "bert" / "preprocessor_config.json").write_text(
        '{"image_mean": [], "image_std": []}'
    )
    with pytest.raises(InputError, match="a model of pictures"):
        load_captioner(bert, VOCABULARY, 8)
    with pytest.raises(InputError, match=r"\(blip\).*a CLIP model"):
        load_judge(captioner(tmp_path / "blip", "blip"), VOCABULARY)
    with pytest.raises(InputError, match=r"\(clip\).*blip, git"):
        load_captioner(judge(tmp_path / "clip"), VOCABULARY, 8)
