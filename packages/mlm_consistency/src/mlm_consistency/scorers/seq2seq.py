"""Scorer for span-infilling encoder-decoder models: T5, mT5, UL2 (sentinels), BART (mask).

Every masking pattern of a sentence is one encoder pass, shared by all targets that are scored with
it. The vocabulary head runs only on the decoder positions that are scored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ..errors import InputError, ProbeError, ScoreError, require
from .masked import load_tokenizer, resolve, weights_fingerprint


@dataclass(frozen=True)
class InfillRequest:
    """Targets to score with one encoder input.

    Parameters
    ----------
    encoder : tuple of int
        Input with sentinels, end token included.
    targets : tuple of tuples of int
        Decoder tokens without the start token.
    skip : int
        Tokens at the front of every target that are conditioned on and not scored.
    """

    encoder: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]
    skip: int = 0


class InfillScorer:
    """Teacher-forced log-probabilities of span-infilling models.

    Parameters
    ----------
    model : transformers encoder-decoder
    sentinels : sequence of int
        Ids of ``<extra_id_0>`` ..., from the tokenizer; a single mask id for BART.
    eos_id : int
    style : "sentinel" or "mask"
        T5's form (only the spans are decoded) or BART's (the whole sentence is).
    bos_ids : tuple of int
        Tokens that the decoder sees before the sentence (BART).
    budget_bytes : int
        Activations of one batch.
    """

    def __init__(
        self,
        model: Any,
        sentinels: Sequence[int],
        eos_id: int,
        style: str = "sentinel",
        bos_ids: tuple[int, ...] = (),
        budget_bytes: int = 2**30,
    ) -> None:
        require(style in ("sentinel", "mask"), "style", style, "'sentinel' or 'mask'")
        require(len(sentinels) >= 1, "sentinels", len(sentinels), "at least one id")
        self.model = model.eval()
        self.sentinels = tuple(int(s) for s in sentinels)
        self.eos_id = int(eos_id)
        self.style = style
        self.bos_ids = bos_ids
        self.budget_bytes = budget_bytes
        self.vocab_size = int(model.config.vocab_size)
        self.max_length = int(getattr(model.config, "max_position_embeddings", 0) or 4096)
        self.fingerprint = f"{weights_fingerprint(model)}-{self.sentinels[0]}-{style}"
        bad = [s for s in self.sentinels if not 0 <= s < self.vocab_size]
        require(not bad, "sentinels", bad[:3], f"ids below the vocabulary's {self.vocab_size}")

    def sentinel(self, index: int) -> int:
        """Id of the sentinel of one span; the same mask for every span in BART's form."""
        if self.style == "mask":
            return self.sentinels[0]
        if index >= len(self.sentinels):
            raise ProbeError(
                f"span {index}: allowed are {len(self.sentinels)} spans, one per sentinel of the"
                " tokenizer; mask fewer spans"
            )
        return self.sentinels[index]

    def pattern(
        self, ids: Sequence[int], spans: Sequence[tuple[int, int]]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Make encoder input and decoder target of a sentence with masked spans.

        Parameters
        ----------
        ids : token ids of the sentence, without special tokens
        spans : (start, stop) pairs, increasing, disjoint

        Returns
        -------
        encoder, target
            The target ends with the closing sentinel (T5) or holds the sentence (BART).
        """
        encoder: list[int] = []
        target: list[int] = []
        at = 0
        for i, (start, stop) in enumerate(spans):
            if not at <= start < stop <= len(ids):
                raise ProbeError(
                    f"span ({start}, {stop}): allowed are increasing disjoint spans within"
                    f" {len(ids)} tokens"
                )
            encoder += [*ids[at:start], self.sentinel(i)]
            target += [self.sentinel(i), *ids[start:stop]]
            at = stop
        encoder += [*ids[at:], self.eos_id]
        if len(encoder) > self.max_length:
            raise ProbeError(
                f"input has {len(encoder)} tokens: allowed are {self.max_length}; nothing is"
                " truncated, leave the sentence out or shorten it"
            )
        if self.style == "mask":
            return (*self.bos_ids, *encoder), (*self.bos_ids, *ids, self.eos_id)
        closing = [self.sentinels[len(spans)]] if len(spans) < len(self.sentinels) else []
        return tuple(encoder), (*target, *closing, self.eos_id)

    def score(self, requests: Sequence[InfillRequest]) -> list[list[Float[np.ndarray, " n"]]]:
        """Log-probability of every scored token of every target, nats.

        Equal encoder inputs are encoded once; batches hold inputs of one length.
        """
        unique: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for i, request in enumerate(requests):
            for j in range(len(request.targets)):
                unique.setdefault(request.encoder, []).append((i, j))
        out: list[list[Any]] = [[None] * len(r.targets) for r in requests]
        by_length: dict[int, list[tuple[int, ...]]] = {}
        for encoder in unique:
            by_length.setdefault(len(encoder), []).append(encoder)
        for length in sorted(by_length):
            group = by_length[length]
            cost = self._bytes(length)
            size = max(1, min(128, self.budget_bytes // cost))
            for start in range(0, len(group), size):
                self._group(group[start : start + size], unique, requests, out)
        return out

    def first_tokens(
        self, encoders: Sequence[tuple[int, ...]], top: int
    ) -> list[Int[np.ndarray, " top"]]:
        """Most probable first tokens of the first span of each input (sentinel form)."""
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        require(self.style == "sentinel", "style", self.style, "'sentinel'")
        begin = self.model.config.decoder_start_token_id
        out: list[Any] = [None] * len(encoders)
        order: dict[int, list[int]] = {}
        for n, encoder in enumerate(encoders):
            order.setdefault(len(encoder), []).append(n)
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            for group in order.values():
                for start in range(0, len(group), 64):
                    part = group[start : start + 64]
                    batch = torch.tensor([encoders[n] for n in part], device=device)
                    states = self.model.get_encoder()(input_ids=batch).last_hidden_state
                    prefix = torch.tensor([[begin, self.sentinel(0)]] * len(part), device=device)
                    logits = self.model(
                        encoder_outputs=BaseModelOutput(last_hidden_state=states),
                        decoder_input_ids=prefix,
                        use_cache=False,
                    ).logits[:, -1]
                    for n, row in zip(part, logits.topk(top).indices.cpu().numpy()):
                        out[n] = row
        return out

    def _bytes(self, length: int) -> int:
        config = self.model.config
        hidden = int(getattr(config, "d_model", 512))
        return 4 * (24 * hidden * length + 4 * 12 * length * length)

    def _group(
        self,
        encoders: list[tuple[int, ...]],
        unique: dict[tuple[int, ...], list[tuple[int, int]]],
        requests: Sequence[InfillRequest],
        out: list[list[Any]],
    ) -> None:
        """One encoder batch and the decoder batches over its targets."""
        import torch

        device = next(self.model.parameters()).device
        batch = torch.tensor(encoders, device=device)
        with torch.inference_mode():
            states = self.model.get_encoder()(input_ids=batch).last_hidden_state
            work = [(row, i, j) for row, e in enumerate(encoders) for i, j in unique[e]]
            work.sort(key=lambda w: len(requests[w[1]].targets[w[2]]))
            per_row = 4 * 2 * self.vocab_size * 4 + self._bytes(len(encoders[0]))
            size = max(1, min(512, self.budget_bytes // per_row))
            for start in range(0, len(work), size):
                part = work[start : start + size]
                targets = [requests[i].targets[j] for _, i, j in part]
                skips = [requests[i].skip for _, i, _ in part]
                found = self._decode(states[[row for row, _, _ in part]], targets, skips)
                for (_, i, j), values in zip(part, found):
                    out[i][j] = values

    def _decode(
        self, states: Any, targets: list[tuple[int, ...]], skips: list[int]
    ) -> list[np.ndarray]:
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        config = self.model.config
        begin = config.decoder_start_token_id
        longest = max(map(len, targets))
        inputs = torch.full((len(targets), longest), int(config.pad_token_id or 0))
        rows, places, wanted = [], [], []
        for n, (target, skip) in enumerate(zip(targets, skips)):
            # causal attention: padding on the right of a target cannot reach its tokens
            inputs[n, : len(target)] = torch.tensor([begin, *target[:-1]])
            for t in range(skip, len(target)):
                rows.append(n)
                places.append(t)
                wanted.append(target[t])
        device = states.device
        row = torch.tensor(rows, device=device)
        place = torch.tensor(places, device=device)

        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state[row, place][None]
            return output

        handle = self.model.get_decoder().register_forward_hook(hook)
        try:
            logits = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                decoder_input_ids=inputs.to(device),
                use_cache=False,
            ).logits[0]
        finally:
            handle.remove()
        log_p = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        log_p = torch.log_softmax(log_p, dim=-1)
        picked = log_p[torch.arange(len(wanted), device=device), torch.tensor(wanted).to(device)]
        values = picked.double().cpu().numpy()
        if np.isnan(values).any():
            raise ScoreError(
                "the model returned NaN: allowed are finite logits; load it in float32 or bfloat16"
            )
        split = np.cumsum([len(t) - s for t, s in zip(targets, skips)])[:-1]
        return list(np.split(values, split))


_SENTINEL = re.compile(r"^<extra_id_(\d+)>$")


def sentinel_ids(tokenizer: Any) -> list[int]:
    """Ids of the sentinels in their order, whatever the ids are; empty without sentinels."""
    found = {}
    for token, index in tokenizer.get_vocab().items():
        if match := _SENTINEL.match(token):
            found[int(match[1])] = int(index)
    return [found[i] for i in sorted(found)]


def load_infill(name: str, dtype: str = "float32", device: str = "cpu") -> tuple[InfillScorer, Any]:
    """Load a span-infilling model and its tokenizer.

    Parameters
    ----------
    name : str
        ``mini-t5``, a folder, or a Hugging Face id of a T5, mT5, UL2 or BART model.

    Raises
    ------
    InputError
        Not found, not an encoder-decoder, neither sentinels nor a mask token.
    """
    import torch
    from transformers import AutoModelForSeq2SeqLM

    tokenizer = load_tokenizer(name)
    kinds = ("float32", "float64", "bfloat16", "float16")
    require(dtype in kinds, "dtype", dtype, f"one of {', '.join(kinds)}")
    try:
        model = AutoModelForSeq2SeqLM.from_pretrained(resolve(name), dtype=getattr(torch, dtype))
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())[:160]
        raise InputError(f"model = {name!r}: allowed is a T5 or BART model; {text}") from None
    return wrap(model.to(device), tokenizer), tokenizer


def wrap(model: Any, tokenizer: Any) -> InfillScorer:
    """Choose the form of infilling from the tokenizer."""
    sentinels = sentinel_ids(tokenizer)
    if sentinels:
        return InfillScorer(model, sentinels, tokenizer.eos_token_id)
    if tokenizer.mask_token_id is not None:
        bos = () if tokenizer.bos_token_id is None else (int(tokenizer.bos_token_id),)
        return InfillScorer(model, [tokenizer.mask_token_id], tokenizer.eos_token_id, "mask", bos)
    raise InputError(
        "tokenizer: has neither <extra_id_0> nor a mask token; allowed are T5, UL2 and BART models"
    )
