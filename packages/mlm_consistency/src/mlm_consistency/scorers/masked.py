"""Scorer for Hugging Face masked language models, and for masked-diffusion models.

The vocabulary head is evaluated only where a distribution is read. This needs no code per
architecture: a forward hook on the model's body hands the head the hidden states of the wanted
places alone. The scorer checks on construction that this changes no logit, and evaluates the head
everywhere where it does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from ..errors import InputError, require

_TOLERANCE = 1e-4
_REPEATED = 1.25  # places per input up to which inputs are repeated rather than run to their end


def weights_fingerprint(model: Any) -> str:
    """Checksum of a model's configuration, precision and weights."""
    import torch

    digest = hashlib.sha256()
    digest.update(type(model).__name__.encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


class MaskedScorer:
    """Scores of a masked language model.

    Parameters
    ----------
    model : transformers model
        Whose output has ``logits`` at every position of the input.
    mask_id : int
    max_length : int
        Longest input; longer ones are refused, never truncated.
    shift : int
        Distance between the masked position and the output that predicts it: 0 for BERT and for
        LLaDA, -1 for diffusion models adapted from left-to-right ones (Dream).
    late : bool
        Also skip the last layer outside the wanted places: its feed-forward part, and in BERT's
        layout its queries too, where that changes no logit.
    """

    def __init__(
        self,
        model: Any,
        mask_id: int,
        max_length: int | None = None,
        shift: int = 0,
        late: bool = True,
    ) -> None:
        require(shift in (0, -1), "shift", shift, "0 or -1")
        self.model = model.eval()
        config = model.config
        self.vocab_size = int(config.vocab_size)
        require(0 <= mask_id < self.vocab_size, "mask_id", mask_id, f"0 to {self.vocab_size - 1}")
        self.mask_id = int(mask_id)
        self.shift = shift
        self.max_length = int(max_length or _longest(config))
        self.fingerprint = f"{weights_fingerprint(model)}-{mask_id}-{shift}"
        self._gather: Any = None
        self._site = self._choose_site(late)

    @property
    def head_only_where_needed(self) -> bool:
        """Whether the vocabulary head is skipped where nothing is read."""
        return self._site is not None

    def bytes_per_sequence(self, length: int) -> int:
        """Activations of one input: hidden states, feed-forward, attention scores."""
        config = self.model.config
        hidden = getattr(config, "hidden_size", 768)
        wide = getattr(config, "intermediate_size", 4 * hidden)
        heads = getattr(config, "num_attention_heads", 12)
        size = next(self.model.parameters()).element_size()
        return int(size * (length * (8 * hidden + 2 * wide) + 2 * heads * length * length))

    def logits(
        self,
        ids: Int[np.ndarray, "batch length"],
        rows: Int[np.ndarray, " n"],
        positions: Int[np.ndarray, " n"],
    ) -> Any:
        """Logits [n, vocab] in float32 at the wanted places of a batch without padding."""
        import torch

        device = next(self.model.parameters()).device
        batch = torch.from_numpy(np.ascontiguousarray(ids)).to(device)
        row = torch.from_numpy(np.asarray(rows, np.int64)).to(device)
        place = torch.from_numpy(np.asarray(positions, np.int64) + self.shift).to(device)
        with torch.inference_mode():
            return self._logits(batch, row, place, self._site)

    def _logits(self, batch: Any, row: Any, place: Any, site: tuple[str, Any] | None) -> Any:
        import torch

        if site is None:
            return self._call(batch)[row, place]
        kind, module = site
        if kind != "body" and (len(row) != len(batch) or not bool((row.diff() == 1).all())):
            if len(row) <= _REPEATED * len(batch):  # the few inputs with several places run again
                batch, row = batch[row], torch.arange(len(row), device=batch.device)
            else:
                kind, module = "body", self._body
        gathering = (
            _one_query(module, row, place)
            if kind == "query"
            else self._gathering(module, row, place, keep_batch=kind == "late")
        )
        with gathering:
            out = self._call(batch)
        return out.reshape(-1, out.shape[-1])

    def _call(self, batch: Any) -> Any:
        """Run the model without an attention mask: batches have no padding."""
        output = self.model(input_ids=batch)
        return output.logits if hasattr(output, "logits") else output[0]

    @property
    def _body(self) -> Any:
        body = getattr(self.model, "base_model", None)
        return None if body is self.model else body

    @contextmanager
    def _gathering(self, module: Any, row: Any, place: Any, keep_batch: bool) -> Iterator[None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            hidden = output if not isinstance(output, (tuple, dict)) and not hasattr(
                output, "last_hidden_state"
            ) else output[0]  # fmt: skip
            picked = hidden[row, place]
            picked = picked[:, None] if keep_batch else picked[None]
            if hasattr(output, "last_hidden_state"):
                output.last_hidden_state = picked
                return output
            return (picked, *output[1:]) if isinstance(output, tuple) else picked

        handle = module.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def _choose_site(self, late: bool) -> tuple[str, Any] | None:
        """Find the latest place where states can be dropped without changing a logit."""
        import torch

        body = self._body
        if body is None:
            return None
        rng = np.random.default_rng(0)
        length = min(9, self.max_length)
        ids = rng.integers(0, min(self.vocab_size, 1000), (4, length))
        pad = getattr(self.model.config, "pad_token_id", None)
        ids[ids == pad] = self.mask_id
        ids[:, 3] = self.mask_id
        batch = torch.from_numpy(ids).to(next(self.model.parameters()).device)
        row, place = torch.arange(4), torch.tensor([1, 2, 3, length - 1]) + self.shift
        sites: list[tuple[str, Any]] = []
        if late and (attention := _last_attention(body)) is not None:
            if _plain_queries(attention):
                sites.append(("query", attention))
            sites.append(("late", attention))
        sites.append(("body", body))
        with torch.inference_mode():
            whole = self._call(batch)[row, place].double()
            for site in sites:
                try:
                    found = self._logits(batch, row, place, site).double()
                except (RuntimeError, TypeError, IndexError, AttributeError, ValueError):
                    continue  # the architecture does not take gathered states at this place
                scale = 1 + float(whole.abs().max())
                if found.shape == whole.shape and float((found - whole).abs().max()) <= (
                    _TOLERANCE * scale
                ):
                    return site
        return None


def _last_attention(body: Any) -> Any:
    """Attention block of the last layer, whose output feeds only position-wise parts."""
    last = None
    for name, module in body.named_modules():
        if name.rpartition(".")[2] == "attention":
            parent = name.rpartition(".")[0]
            if parent.rpartition(".")[2].isdigit():
                last = module
    return last


def _plain_queries(attention: Any) -> bool:
    """Whether a block has BERT's layout: three projections, positions in the embeddings alone."""
    core = getattr(attention, "self", None)
    if core is None or not hasattr(core, "attention_head_size"):
        return False
    parts = {name for name, _ in core.named_children()}
    arguments = signature(core.forward).parameters
    return {"query", "key", "value"} <= parts <= {"query", "key", "value", "dropout"} and not any(
        "pos" in name for name in arguments
    )


@contextmanager
def _one_query(attention: Any, row: Any, place: Any) -> Iterator[None]:
    """Let an attention block of BERT's layout ask with the wanted places alone.

    Keys and values come from the whole input, so the block's output [batch, 1, hidden] is what it
    was at those places.
    """
    from torch.nn.functional import scaled_dot_product_attention

    core = attention.self
    size = core.attention_head_size

    def split(states: Any) -> Any:
        return states.unflatten(-1, (-1, size)).transpose(1, 2)

    def forward(hidden: Any, *_arguments: Any, **_settings: Any) -> Any:
        picked = hidden[row, place][:, None]
        mixed = scaled_dot_product_attention(
            split(core.query(picked)), split(core.key(hidden)), split(core.value(hidden))
        )
        return attention.output(mixed.transpose(1, 2).flatten(2), picked), None

    attention.forward = forward  # of this instance; the class keeps its own
    try:
        yield
    finally:
        del attention.forward


def _longest(config: Any) -> int:
    longest = getattr(config, "max_position_embeddings", None) or 512
    # RoBERTa's positions start after the padding index
    if getattr(config, "model_type", "") in {
        "roberta", "xlm-roberta", "camembert", "mpnet", "esm",
    }:  # fmt: skip
        longest -= (getattr(config, "pad_token_id", 1) or 0) + 1
    return max(int(longest), 4)


def load(name: str, dtype: str = "float32", device: str = "cpu") -> tuple[MaskedScorer, Any]:
    """Load a masked language model and its tokenizer.

    Parameters
    ----------
    name : str
        ``mini-bert``, a folder, or a Hugging Face id.
    dtype : "float32", "float64", "bfloat16" or "float16"
    device : str

    Raises
    ------
    InputError
        Not found (says so in one line without a network), no masked-LM head, no mask token.
    """
    import torch
    from transformers import AutoModelForMaskedLM

    tokenizer = load_tokenizer(name)
    if tokenizer.mask_token_id is None:
        raise InputError(
            f"model = {name!r}: its tokenizer has no mask token; allowed are masked language"
            " models; use a T5 or BART model through the infilling commands"
        )
    kinds = ("float32", "float64", "bfloat16", "float16")
    require(dtype in kinds, "dtype", dtype, f"one of {', '.join(kinds)}")
    try:
        model = AutoModelForMaskedLM.from_pretrained(resolve(name), dtype=getattr(torch, dtype)).to(
            device
        )
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())[:160]
        raise InputError(f"model = {name!r}: allowed is a masked language model; {text}") from None
    return MaskedScorer(model, tokenizer.mask_token_id), tokenizer


def resolve(name: str) -> str:
    """Turn the name of a bundled miniature into its folder; leave other names as they are."""
    from ..mini import NAMES, bundled

    return str(bundled(name)) if name in NAMES else name


def load_tokenizer(name: str) -> Any:
    """Load a tokenizer; one line where there is none."""
    from transformers import AutoTokenizer

    path = resolve(name)
    looks_local = name.startswith((".", "/")) or Path(path).exists()
    if looks_local and not (Path(path) / "config.json").exists():
        raise InputError(
            f"model = {name!r}: allowed is a folder with config.json, a Hugging Face id, or one of"
            " mini-bert, mini-t5"
        )
    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:  # hub, parser and file errors of many types; all mean the same
        text = " ".join(str(error).split())[:160]
        raise InputError(
            f"model = {name!r}: allowed is a folder, a Hugging Face id that can be reached, or one"
            f" of mini-bert, mini-t5; {text}"
        ) from None
