"""Hugging Face captioners of random weights."""

import pytest
import torch
from p2c import HFCaptioner, InputError

transformers = pytest.importorskip("transformers")


def models():
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2}
    vision = {**small, **heads, "image_size": 16, "patch_size": 8}
    blip = transformers.BlipForConditionalGeneration(
        transformers.BlipConfig(
            text_config={
                **small, **heads, "vocab_size": 20, "encoder_hidden_size": 16, "bos_token_id": 1,
                "sep_token_id": 2, "eos_token_id": 2, "pad_token_id": 0, "projection_dim": 8,
                "max_position_embeddings": 16, "is_decoder": True,
            },
            vision_config=vision, projection_dim=8, image_text_hidden_size=8,
        )
    )  # fmt: skip
    git = transformers.GitForCausalLM(
        transformers.GitConfig(vision_config=vision, vocab_size=20, max_position_embeddings=16,
                               bos_token_id=1, eos_token_id=2, pad_token_id=0, **small, **heads)
    )  # fmt: skip
    ved = transformers.VisionEncoderDecoderModel(
        encoder=transformers.ViTModel(transformers.ViTConfig(**vision)),
        decoder=transformers.BertLMHeadModel(
            transformers.BertConfig(vocab_size=20, is_decoder=True, add_cross_attention=True,
                                    max_position_embeddings=16, **small, **heads)
        ),
    )  # fmt: skip
    return {"blip": blip.eval(), "git": git.eval(), "ved": ved.eval()}


@pytest.mark.parametrize("name", ["blip", "git", "ved"])
def test_greedy_equals_transformers_and_log_probs_agree(name):
    model = models()[name]
    captioner = HFCaptioner(model, 1, 2, 0)
    pixels = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        memory = captioner.encode(pixels)
        ours = captioner.generate(memory, greedy=True, max_length=6)
        start = torch.ones(3, 1, dtype=torch.long)
        settings = {"max_new_tokens": 6, "do_sample": False, "num_beams": 1, "eos_token_id": 2,
                    "pad_token_id": 0}  # fmt: skip
        if name == "blip":
            theirs = model.text_decoder.generate(
                input_ids=start, encoder_hidden_states=memory.states,
                encoder_attention_mask=torch.ones(memory.states.shape[:2]), **settings,
            )  # fmt: skip
        elif name == "git":
            theirs = model.generate(pixel_values=pixels, input_ids=start, **settings)
        else:
            theirs = model.generate(pixel_values=pixels, decoder_start_token_id=1, **settings)
        width = ours.ids.shape[-1]
        assert torch.equal(ours.ids[:, 0], theirs[:, 1 : 1 + width])
        drawn = captioner.generate(memory, 4, 6, generator=torch.Generator().manual_seed(0))
        again = captioner.log_prob(memory, drawn.ids)
    torch.testing.assert_close(again, drawn.log_prob, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["blip", "ved"])
def test_five_samples_are_those_of_transformers(name):
    """One set of weights, one seed: the cached decoder draws the same words as `generate`."""
    model = models()[name]
    captioner = HFCaptioner(model, 1, 2, 0)
    pixels = torch.randn(3, 3, 16, 16)
    settings = {"max_new_tokens": 8, "do_sample": True, "top_k": 0, "num_beams": 1,
                "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
    with torch.no_grad():
        memory = captioner.encode(pixels)
        torch.manual_seed(5)
        ours = captioner.generate(memory, 5, 8).ids.flatten(0, 1)
        torch.manual_seed(5)
        if name == "blip":
            states = memory.states.repeat_interleave(5, 0)
            theirs = model.text_decoder.generate(
                input_ids=torch.ones(15, 1, dtype=torch.long), encoder_hidden_states=states,
                encoder_attention_mask=torch.ones(states.shape[:2]), **settings,
            )  # fmt: skip
        else:
            theirs = model.generate(
                pixel_values=pixels, decoder_start_token_id=1, num_return_sequences=5, **settings
            )
    assert torch.equal(ours, theirs[:, 1 : 1 + ours.shape[1]])
    assert len(ours.unique(dim=0)) > 5


@pytest.mark.parametrize("name", ["blip", "ved"])
def test_cached_decoder_equals_recomputing(name):
    model = models()[name]
    captioner = HFCaptioner(model, 1, 2, 0)
    with torch.no_grad():
        memory = captioner.encode(torch.randn(2, 3, 16, 16))
        cached = captioner.generate(memory, 3, 6, generator=torch.Generator().manual_seed(1))
        slow = HFCaptioner(model, 1, 2, 0)
        model.train()  # dropout: the cache is not used, whatever its rate
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        again = slow.generate(memory, 3, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(cached.ids, again.ids)
    torch.testing.assert_close(cached.log_prob, again.log_prob, atol=1e-5, rtol=1e-5)


def test_gradient_reaches_the_decoder():
    model = models()["ved"]
    captioner = HFCaptioner(model, 1, 2, 0)
    memory = captioner.encode(torch.randn(1, 3, 16, 16))
    captioner.log_prob(memory, torch.tensor([[[5, 6, 2]]])).sum().backward()
    assert any(
        float(p.grad.abs().sum()) > 0 for p in model.decoder.parameters() if p.grad is not None
    )


def test_unknown_model():
    with pytest.raises(InputError, match="model = 'bert'"):
        HFCaptioner(
            transformers.BertModel(
                transformers.BertConfig(
                    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
                )
            ),
            1,
            2,
            0,
        )
