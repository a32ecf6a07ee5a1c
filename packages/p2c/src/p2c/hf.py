"""Hugging Face captioners behind the interface of this package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .bert_decoder import BertStepper, fits
from .captioner import Captions
from .errors import InputError, require


@dataclass
class HFMemory:
    """The images of a batch, and the encoder's states where the decoder attends to them."""

    pixels: Float[Tensor, "batch 3 height width"]
    states: Float[Tensor, "batch places dim"] | None


def decode_words(
    following: Callable[[Tensor], Tensor],
    first: Int[Tensor, " rows"],
    limit: int,
    end: int,
    pad: int,
    *,
    greedy: bool = False,
    generator: torch.Generator | None = None,
    forced: Int[Tensor, "rows prefix"] | None = None,
) -> tuple[Int[Tensor, "rows length"], Float[Tensor, "rows length"]]:
    """Return words and their log-probabilities, chosen one by one until every caption has ended.

    Parameters
    ----------
    following : callable
        From the last words (rows,) to the logits of the next (rows, words).
    first : (rows,)
        Start tokens.
    limit : int
        Most words, the end included.
    end, pad : int
        Numbers of those tokens.
    greedy, generator
        Take the likeliest word, or sample.
    forced : (rows, prefix), optional
        First words to begin with; ``pad`` leaves the choice free.
    """
    last, done = first, torch.zeros_like(first, dtype=torch.bool)
    ids, logs = [], []
    for step in range(limit):
        p = following(last).softmax(-1)
        choice = p.argmax(-1) if greedy else torch.multinomial(p, 1, generator=generator)[:, 0]
        if forced is not None and step < forced.shape[1]:
            choice = torch.where(forced[:, step] != pad, forced[:, step], choice)
        choice = choice.masked_fill(done, pad)
        logs.append(p.gather(1, choice[:, None])[:, 0].log().masked_fill(done, 0.0))
        ids.append(choice)
        last, done = choice, done | (choice == end)
        if bool(done.all()):
            break
    return torch.stack(ids, 1), torch.stack(logs, 1)


class HFCaptioner:
    """BLIP, GIT or a VisionEncoderDecoder model as a `Captioner`.

    The image is encoded once for all samples; decoders of BERT's layout (BLIP's, and those that a
    VisionEncoderDecoder usually has) also cache the words. Weights are the caller's: nothing is
    downloaded.

    Parameters
    ----------
    model : transformers model
        ``BlipForConditionalGeneration``, ``GitForCausalLM`` or ``VisionEncoderDecoderModel``.
    start, end, pad : int
        Numbers of the start, end and padding tokens.
    """

    def __init__(self, model: Any, start: int, end: int, pad: int) -> None:
        self.model, self.start, self.end, self.pad = model, start, end, pad
        kind = str(model.config.model_type)
        known = {"blip": "blip", "git": "git", "vision-encoder-decoder": "ved"}
        if kind not in known:
            raise InputError(f"model = {kind!r}: allowed is {', '.join(known)}")
        self.kind = known[kind]

    def encode(self, pixels: Float[Tensor, "batch 3 height width"]) -> HFMemory:
        """Return the memory of processed images."""
        require(bool(torch.isfinite(pixels).all()), "pixels", "NaN or infinite", "finite pixels")
        if self.kind == "git":
            return HFMemory(pixels, None)
        encoder = self.model.vision_model if self.kind == "blip" else self.model.encoder
        states = encoder(pixel_values=pixels).last_hidden_state
        if self.kind == "ved" and hasattr(self.model, "enc_to_dec_proj"):
            states = self.model.enc_to_dec_proj(states)
        return HFMemory(pixels, states)

    def next_logits(
        self, memory: HFMemory, prefix: Int[Tensor, "rows length"], copies: int
    ) -> Float[Tensor, "rows length words"]:
        """Return logits (rows, length, words) at every place of prefixes that begin with start."""
        if self.kind == "git":
            pixels = memory.pixels.repeat_interleave(copies, 0)
            out = self.model(input_ids=prefix, pixel_values=pixels)
            logits: Tensor = out.logits[:, -prefix.shape[1] :]
            return logits
        assert memory.states is not None
        states = memory.states.repeat_interleave(copies, 0)
        decoder = self.model.text_decoder if self.kind == "blip" else self.model.decoder
        scores: Tensor = decoder(input_ids=prefix, encoder_hidden_states=states).logits
        return scores

    def log_prob(
        self, memory: HFMemory, ids: Int[Tensor, "batch samples length"]
    ) -> Float[Tensor, "batch samples length"]:
        """Return each token's log-probability, the end token included; 0 at padding."""
        flat = ids.flatten(0, 1)
        start = torch.full_like(flat[:, :1], self.start)
        logits = self.next_logits(memory, torch.cat([start, flat[:, :-1]], 1), ids.shape[1])
        chosen = logits.log_softmax(-1).gather(-1, flat[..., None])[..., 0].view(ids.shape)
        ended = (ids == self.end).long().cumsum(-1) - (ids == self.end).long()
        return chosen.masked_fill(ended > 0, 0.0)

    @torch.no_grad()
    def generate(
        self,
        memory: HFMemory,
        samples: int = 1,
        max_length: int = 20,
        *,
        greedy: bool = False,
        generator: torch.Generator | None = None,
    ) -> Captions:
        """Return captions (batch, samples, length) over one encoding of the images."""
        batch = len(memory.pixels)
        first = torch.full((batch * samples,), self.start, device=memory.pixels.device)
        following = self.steps(memory, samples, max_length)
        ids, logs = decode_words(
            following, first, max_length, self.end, self.pad, greedy=greedy, generator=generator
        )
        shape = (batch, samples, -1)
        return Captions(ids.view(shape), logs.view(shape))

    def steps(self, memory: HFMemory, samples: int, length: int) -> Callable[[Tensor], Tensor]:
        """Return a function from the last word of every caption to the logits of the next."""
        if self.kind != "git" and not self.model.training:
            decoder = self.model.text_decoder if self.kind == "blip" else self.model.decoder
            if fits(decoder):
                assert memory.states is not None
                return BertStepper(decoder, memory.states, samples, length).step
        words: list[Tensor] = []

        def recompute(last: Tensor) -> Tensor:
            words.append(last)
            return self.next_logits(memory, torch.stack(words, 1), samples)[:, -1]

        return recompute
