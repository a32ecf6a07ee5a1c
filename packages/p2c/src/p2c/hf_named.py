"""Models of transformers that a configuration names, ``hf:NAME``, over the captions' vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from .association import HFAssociation
from .captioner import Captions, token_log_prob
from .errors import InputError, require
from .hf import HFCaptioner, HFMemory, decode_words
from .hf_paraphrase import HFMaskedLM, T5SpanParaphraser
from .paraphrase import MaskedLMParaphraser, NullParaphraser, Paraphraser, Policy, Tagger
from .vocabulary import CLS, MASK, PAD, SEP, UNK, Vocabulary

CAPTIONERS = {
    "blip": "BlipForConditionalGeneration",
    "git": "GitForCausalLM",
    "vision-encoder-decoder": "VisionEncoderDecoderModel",
}


class Pixels(nn.Module):
    """Pictures of values 0 to 1, resized and normalised as a vision model wants them."""

    def __init__(self, size: int, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Tensor:
        """Return pixels (batch, 3, size, size)."""
        shape = (self.size, self.size)
        large = F.interpolate(images, shape, mode="bicubic", antialias=True).clamp(0, 1)
        return (large - self.mean) / self.std


class HFJudge:
    """A ``CLIPModel`` as judge of captions in numbers of this package's vocabulary.

    Parameters
    ----------
    model : CLIPModel
        Frozen.
    tokenizer : transformers tokenizer
        Of the model.
    vocabulary : Vocabulary
        Of the captions, which are written out for the tokenizer.
    pixels : Pixels
        Prepares images.
    """

    def __init__(
        self, model: Any, tokenizer: Any, vocabulary: Vocabulary, pixels: Callable[[Tensor], Tensor]
    ) -> None:
        self.clip, self.tokenizer, self.vocabulary = HFAssociation(model), tokenizer, vocabulary
        self.pixels = pixels

    @property
    def scale(self) -> Tensor:
        """Factor of the cosines."""
        return self.clip.scale.detach()

    @torch.no_grad()
    def encode_image(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch dim"]:
        """Return unit vectors of images with values in 0 to 1, 64 at a time."""
        return torch.cat([self.clip.encode_image(self.pixels(part)) for part in images.split(64)])

    @torch.no_grad()
    def encode_text(self, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """Return unit vectors of captions."""
        made = self.tokenizer(self.vocabulary.decode_all(ids), padding=True, return_tensors="pt")
        return self.clip.encode_text(made["input_ids"])


class HFStudent(nn.Module):
    """A captioner of transformers that speaks this package's vocabulary, so that stages train it.

    Every word is one token: a word that the tokenizer spells in several pieces gets a token of its
    own, whose vectors begin as the mean of its pieces'. Tags are not read.

    Parameters
    ----------
    captioner : HFCaptioner
        BLIP, GIT or a VisionEncoderDecoder model.
    tokenizer : transformers tokenizer
        Of the model.
    vocabulary : Vocabulary
        Of the captions.
    max_length : int
        Longest caption, end token included.
    pixels : Pixels
        Prepares images.
    """

    def __init__(
        self,
        captioner: HFCaptioner,
        tokenizer: Any,
        vocabulary: Vocabulary,
        max_length: int,
        pixels: nn.Module,
    ) -> None:
        super().__init__()
        self.captioner, self.model, self.max_length = captioner, captioner.model, max_length
        self.pixels = pixels
        kind = captioner.kind
        decoder = {"blip": "text_decoder", "ved": "decoder"}.get(kind)
        text = getattr(captioner.model, decoder) if decoder else captioner.model
        rest = [tokenizer.unk_token_id if tokenizer.unk_token_id is not None else captioner.pad] * 2
        if tokenizer.mask_token_id is not None:
            rest[0] = tokenizer.mask_token_id
        special = [captioner.pad, rest[0], captioner.start, captioner.end, rest[1]]
        words = _word_tokens(text, tokenizer, vocabulary.words[UNK + 1 :])
        self.register_buffer("tokens", torch.tensor(special + words), persistent=False)
        self.tokens: Tensor

    def encode(
        self, tags: Int[Tensor, "batch tags"], images: Float[Tensor, "batch 3 height width"]
    ) -> HFMemory:
        """Return the memory of images with values in 0 to 1."""
        return self.captioner.encode(self.pixels(images))

    def _words(self, logits: Tensor) -> Tensor:
        """Return logits of the vocabulary's words; tokens that no caption holds get -inf."""
        ban = torch.zeros(len(self.tokens), device=logits.device)
        ban[[PAD, MASK, CLS, UNK]] = -torch.inf
        words: Tensor = logits[..., self.tokens] + ban
        return words

    def masked_logits(
        self, memory: HFMemory, ids: Int[Tensor, "batch samples length"]
    ) -> Float[Tensor, "batch samples length words"]:
        """Return the logits at every place of captions, given the words before it."""
        flat = self.tokens[ids.flatten(0, 1)]
        start = torch.full_like(flat[:, :1], self.captioner.start)
        prefix = torch.cat([start, flat[:, :-1]], 1)
        logits = self._words(self.captioner.next_logits(memory, prefix, ids.shape[1]))
        return logits.view(*ids.shape, -1)

    def log_prob(
        self, memory: HFMemory, ids: Int[Tensor, "batch samples length"]
    ) -> Float[Tensor, "batch samples length"]:
        """Return each token's log-probability, the end token included; 0 at padding."""
        return token_log_prob(self.masked_logits(memory, ids), ids)

    @torch.no_grad()
    def generate(
        self,
        memory: HFMemory,
        samples: int = 1,
        max_length: int | None = None,
        *,
        greedy: bool = False,
        generator: torch.Generator | None = None,
        forced: Int[Tensor, "batch samples prefix"] | None = None,
    ) -> Captions:
        """Return captions in numbers of the vocabulary (see `TagTransformerCaptioner.generate`)."""
        limit = self.max_length if max_length is None else max_length
        following = self.captioner.steps(memory, samples, limit)
        batch = len(memory.pixels)
        ids, logs = decode_words(
            lambda last: self._words(following(self.tokens[last])),
            torch.full((batch * samples,), CLS, device=memory.pixels.device),
            limit,
            SEP,
            PAD,
            greedy=greedy,
            generator=generator,
            forced=None if forced is None else forced.flatten(0, 1),
        )
        shape = (batch, samples, -1)
        return Captions(ids.view(shape), logs.view(shape))


@torch.no_grad()
def _word_tokens(decoder: Any, tokenizer: Any, words: list[str]) -> list[int]:
    """Return one token for each word; the decoder gets new ones where its tokenizer has none."""
    spelled = [tokenizer(" " + w, add_special_tokens=False)["input_ids"] for w in words]
    taken: set[int] = set(tokenizer.all_special_ids)
    tokens = []
    for pieces in spelled:
        own = len(pieces) == 1 and pieces[0] not in taken
        tokens.append(pieces[0] if own else -1)
        taken |= set(pieces) if own else set()
    rows = decoder.get_input_embeddings().num_embeddings
    new = [k for k, token in enumerate(tokens) if token < 0]
    if new:
        decoder.resize_token_embeddings(rows + len(new), mean_resizing=False)
    head = decoder.get_output_embeddings()
    parts = [decoder.get_input_embeddings().weight, head.weight, head.bias]
    for token, k in enumerate(new, rows):
        tokens[k] = token
        for part in parts:
            if part is not None and spelled[k]:
                part[token] = part[spelled[k]].mean(0)
    return tokens


def _load(
    setting: str, name: str, *, images: bool = False
) -> tuple[Callable[[str], Any], Any, Any, Pixels | None]:
    """Return a reader of the weights by class, configuration, tokenizer, preparation of images."""
    try:
        import transformers
        from transformers.image_processing_base import ImageProcessingMixin
    except ImportError:
        raise InputError(f"{setting} = {name!r}: needs transformers; pip install p2c[hf]") from None
    transformers.logging.disable_progress_bar()
    place = name.removeprefix("hf:")

    def read(what: Callable[..., Any]) -> Any:
        try:
            return what(place)
        except Exception as error:  # missing files, no network, broken JSON: all mean the same
            text = " ".join(str(error).split())[:120]
            allowed = "allowed is a folder or name of a model of transformers"
            raise InputError(f"{setting} = {name!r}: {allowed}; {text}") from None

    config = read(transformers.AutoConfig.from_pretrained)
    tokenizer = read(transformers.AutoTokenizer.from_pretrained)
    pixels = None
    if images:
        made, _ = read(ImageProcessingMixin.get_image_processor_dict)
        vision = getattr(config, "vision_config", None) or getattr(config, "encoder", None)
        size = getattr(vision, "image_size", 0)
        mean, std = made.get("image_mean"), made.get("image_std")
        good = isinstance(size, int) and size > 0 and isinstance(mean, list)
        require(good and isinstance(std, list), setting, name, "a model of pictures")
        pixels = Pixels(size, mean, std)
    return (
        lambda kind: read(getattr(transformers, kind).from_pretrained).eval(),
        config,
        tokenizer,
        pixels,
    )


def load_captioner(name: str, vocabulary: Vocabulary, max_length: int) -> HFStudent:
    """Load the captioner ``hf:NAME``: BLIP, GIT or a VisionEncoderDecoder model."""
    weights, config, tokenizer, pixels = _load("captioner", name, images=True)
    kind = config.model_type
    require(kind in CAPTIONERS, "captioner", f"{name} ({kind})", ", ".join(CAPTIONERS))
    text = {"blip": "text_config", "vision-encoder-decoder": "decoder"}.get(kind)
    words = getattr(config, text) if text else config
    start = getattr(config, "decoder_start_token_id", None) or words.bos_token_id
    end = words.sep_token_id if kind == "blip" else words.eos_token_id
    pad = words.pad_token_id if words.pad_token_id is not None else tokenizer.pad_token_id
    for token, value in (("start", start), ("end", end), ("padding", pad)):
        require(isinstance(value, int), "captioner", name, f"a model with a {token} token")
    captioner = HFCaptioner(weights(CAPTIONERS[kind]), start, end, pad)
    assert pixels is not None
    return HFStudent(captioner, tokenizer, vocabulary, max_length, pixels)


def load_judge(name: str, vocabulary: Vocabulary) -> HFJudge | None:
    """Load the judge ``hf:NAME``, a CLIP model; None for one that is trained here."""
    if not name.startswith("hf:"):
        return None
    weights, config, tokenizer, pixels = _load("judge", name, images=True)
    require(config.model_type == "clip", "judge", f"{name} ({config.model_type})", "a CLIP model")
    assert pixels is not None
    return HFJudge(weights("CLIPModel"), tokenizer, vocabulary, pixels)


def load_paraphraser(
    name: str,
    vocabulary: Vocabulary,
    tagger: Tagger,
    policy: Policy,
    choose: Literal["argmax", "sample", "top"],
) -> Paraphraser | None:
    """Load the language model ``hf:NAME``, T5 or a masked one; None for one trained here."""
    if name == "none":
        return NullParaphraser()
    if name == "native":
        return None
    weights, config, tokenizer, _ = _load("language_model", name)
    if config.model_type in ("t5", "mt5"):
        model = weights("AutoModelForSeq2SeqLM")
        return T5SpanParaphraser(
            model, tokenizer, vocabulary, tagger, policy, sample=choose == "sample"
        )
    require(
        tokenizer.mask_token is not None, "language_model", name, "T5 or a model with [MASK] tokens"
    )
    scores = HFMaskedLM(weights("AutoModelForMaskedLM"), tokenizer, vocabulary)
    return MaskedLMParaphraser(scores, vocabulary, tagger, policy, choose=choose)
