"""Image-text association as a judge: retrieval probability within a batch, and the swap gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import require
from .vocabulary import PAD

Gather = Callable[[Tensor], tuple[Tensor, int]]


class AssociationModel(Protocol):
    """Unit vectors of images and captions in one space."""

    def encode_image(self, images: Any) -> Float[Tensor, "batch dim"]:
        """Return unit vectors of images."""

    def encode_text(self, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """Return unit vectors of captions."""

    @property
    def scale(self) -> Tensor:
        """Factor of the cosines in a softmax."""


def gather_rows(rows: Float[Tensor, "batch dim"]) -> tuple[Float[Tensor, "all dim"], int]:
    """Return the rows of all processes and where this process's begin (itself, without a group)."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows, 0
    parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts), torch.distributed.get_rank() * len(rows)


def association_probability(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    scale: float | Tensor = 100.0,
    *,
    swapped: Float[Tensor, "batch dim"] | None = None,
    gather: Gather = gather_rows,
) -> Float[Tensor, " batch"]:
    """Return A(v, c): the mean probability of retrieving the true pair, both ways.

    A(v_i, c_i) = 1/2 [softmax_j s(v_i, c_j)[i] + softmax_j s(v_j, c_i)[i]], over the batches of all
    processes. It depends on the batch and on its size; for a batch of one it is 1.

    Parameters
    ----------
    image, text : (batch, dim)
        Unit vectors of images and captions.
    scale : float
        Factor of the cosines.
    swapped : (batch, dim), optional
        Paraphrases: the i-th figure is A(v_i, c'_i) with only caption i swapped, all others kept.

    Examples
    --------
    >>> x = torch.eye(2)
    >>> association_probability(x, x, 1.0)
    tensor([0.7311, 0.7311])
    >>> association_probability(x[:1], x[:1])
    tensor([1.])
    """
    require(image.shape == text.shape, "text", tuple(text.shape), f"shape {tuple(image.shape)}")
    new = text if swapped is None else swapped
    all_images, first = gather(image)
    all_texts, _ = gather(text)
    rows = torch.arange(len(image), device=image.device)
    to_text = scale * image @ all_texts.T
    to_text[rows, rows + first] = scale * (image * new).sum(-1)
    to_image = scale * new @ all_images.T
    return 0.5 * (
        to_text.softmax(-1)[rows, rows + first] + to_image.softmax(-1)[rows, rows + first]
    )


def swap_gate(
    before: Float[Tensor, " batch"], after: Float[Tensor, " batch"], margin: float = 0.1
) -> Bool[Tensor, " batch"]:
    """Accept a paraphrase whose association beats the caption's by more than the margin.

    Examples
    --------
    >>> swap_gate(torch.tensor([0.2, 0.2]), torch.tensor([0.25, 0.4]))
    tensor([False,  True])
    """
    return after > before + margin


class SmallAssociation(nn.Module):
    """A CLIP-style model small enough to train within seconds.

    Parameters
    ----------
    words : int
        Size of the vocabulary.
    length : int
        Longest caption.
    dim, width : int
        Of the common space and of the convolutions.
    text_layers : int
        Transformer layers over the words; 0 reads word pairs by a convolution instead.
    size : int
        Side of the (square) images, in pixels; a multiple of 8.
    """

    def __init__(
        self,
        words: int,
        length: int,
        dim: int = 96,
        width: int = 24,
        text_layers: int = 1,
        size: int = 48,
    ) -> None:
        super().__init__()
        require(size % 8 == 0, "size", size, "a multiple of 8")
        stages: list[nn.Module] = []
        for a, b in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            stages += [nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(4, b), nn.ReLU()]
        self.image = nn.Sequential(
            *stages, nn.Flatten(), nn.Linear(4 * width * (size // 8) ** 2, dim)
        )
        self.words = nn.Embedding(words, dim, padding_idx=PAD)
        self.place = nn.Parameter(0.1 * torch.randn(length, dim))
        self.mixer: nn.Module
        if text_layers:
            layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, 0.0, batch_first=True)
            self.mixer = nn.TransformerEncoder(layer, text_layers, enable_nested_tensor=False)
        else:
            self.mixer = nn.Conv1d(dim, dim, 3, padding=1)
        self.text = nn.Linear(dim, dim)
        self.log_scale = nn.Parameter(torch.tensor(2.66))

    @property
    def scale(self) -> Tensor:
        """Factor of the cosines, at most 100."""
        return self.log_scale.exp().clamp(max=100.0)

    def encode_image(
        self, images: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch dim"]:
        """Return unit vectors of images with values in 0 to 1."""
        return F.normalize(self.image(images - 0.5), dim=-1)

    def encode_text(self, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """Return unit vectors of captions; an empty one is allowed."""
        there = ids != PAD
        x = (self.words(ids) + self.place[: ids.shape[1]]) * there[..., None]
        if isinstance(self.mixer, nn.Conv1d):
            x = torch.relu(self.mixer(x.transpose(1, 2)).transpose(1, 2)) + x
        else:
            blind = ~there
            blind[:, 0] = False  # a softmax over nothing is not finite
            x = self.mixer(x, src_key_padding_mask=blind)
        mean = (x * there[..., None]).sum(1) / there.sum(1, keepdim=True).clamp(min=1)
        return F.normalize(self.text(mean), dim=-1)

    def loss(
        self,
        images: Float[Tensor, "batch 3 size size"],
        ids: Int[Tensor, "batch length"],
        negatives: Int[Tensor, "batch negatives length"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the symmetric contrastive loss; captions that are equal count as one class.

        Parameters
        ----------
        images, ids
            Pairs.
        negatives : (batch, negatives, length), optional
            Captions that do not fit the image although most of their words do (see `WordSwaps`):
            each image must tell its caption from them too. Rows without a word are left out.
        """
        v, t = self.encode_image(images), self.encode_text(ids)
        scores = self.scale * v @ t.T
        same = (ids[:, None] == ids[None]).all(-1)
        target = same / same.sum(1, keepdim=True)
        to_text = scores
        if negatives is not None:
            wrong = self.encode_text(negatives.flatten(0, 1)).unflatten(0, negatives.shape[:2])
            hard = self.scale * torch.einsum("bd,bnd->bn", v, wrong)
            hard = hard.masked_fill(negatives[..., 0] == PAD, -1e4)
            to_text = torch.cat([scores, hard], 1)
        forward = (target * to_text.log_softmax(1)[:, : len(ids)]).sum(1)
        backward = (target * scores.log_softmax(0).T).sum(1)
        return -0.5 * (forward + backward).mean()


class HFAssociation:
    """A Hugging Face ``CLIPModel`` as judge; captions are its tokenizer's numbers."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()

    @property
    def scale(self) -> Tensor:
        """Factor of the cosines."""
        return torch.as_tensor(self.model.logit_scale.exp())

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Float[Tensor, "batch dim"]:
        """Return unit vectors of processed pixels (batch, 3, height, width)."""
        pooled = self.model.vision_model(pixel_values=images).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=-1)

    @torch.no_grad()
    def encode_text(self, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """Return unit vectors of captions."""
        pooled = self.model.text_model(input_ids=ids).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1)


class OpenClipAssociation:
    """A CLIP model of ``open_clip`` as judge; captions are its tokenizer's numbers.

    Parameters
    ----------
    model : open_clip.CLIP or CustomTextCLIP
        Nothing is downloaded: load the weights before.

    Raises
    ------
    InputError
        The model has no image and text towers with a scale.
    """

    def __init__(self, model: Any) -> None:
        whole = all(hasattr(model, n) for n in ("encode_image", "encode_text", "logit_scale"))
        require(whole, "model", type(model).__name__, "a CLIP model of open_clip")
        self.model = model.eval()

    @property
    def scale(self) -> Tensor:
        """Factor of the cosines."""
        return torch.as_tensor(self.model.logit_scale.exp())

    @torch.no_grad()
    def encode_image(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch dim"]:
        """Return unit vectors of pixels that went through the model's own transform."""
        return F.normalize(self.model.encode_image(images), dim=-1)

    @torch.no_grad()
    def encode_text(self, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """Return unit vectors of captions."""
        return F.normalize(self.model.encode_text(ids), dim=-1)
