"""Captions of pictures on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from .captioner import TagTransformerCaptioner
from .decode import constrained_beam
from .errors import InputError, require
from .files import load_tensors
from .formats import read_image
from .scenes import CROP, SIZE, RegionFeaturizer, Scenes
from .world import world_vocabulary


def caption_images(
    images: Sequence[Path], checkpoint: str | Path, tags: str, beam: int, constrain: str
) -> list[str]:
    """Return one caption per picture by (constrained) beam search.

    Parameters
    ----------
    images : sequence of paths
        Pictures; the whole of one stands for both regions.
    checkpoint : path
        ``captioner.pt`` of `p2c pipeline`.
    tags, constrain : str
        Words separated by commas: the detector's objects, and those that must be named.
    beam : int
        Width of the search.
    """
    vocabulary = world_vocabulary()
    state = load_tensors(checkpoint)
    try:
        config, weights = state["config"], state["captioner"]
        featurizer = RegionFeaturizer(**state["featurizer"])
        net = TagTransformerCaptioner(
            weights["words.weight"],
            weights["regions.0.weight"].shape[1],
            config["layers"],
            4,
            config["max_length"],
        )
        net.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        text = " ".join(str(error).split())[:120]
        raise InputError(
            f"checkpoint = {str(checkpoint)!r}: allowed is captioner.pt of p2c pipeline; {text}"
        ) from None

    def numbers(words: str, name: str) -> list[int]:
        listed = [w.strip().lower() for w in words.split(",") if w.strip()]
        for word in listed:
            require(word in vocabulary.index, name, word, "a word of the vocabulary")
        return [vocabulary.index[w] for w in listed]

    known = torch.tensor([numbers(tags, "tags")], dtype=torch.long).view(1, -1)
    must = [[n] for n in numbers(constrain, "constrain")]
    found = []
    for path in images:
        picture = torch.from_numpy(read_image(path, SIZE))
        half = torch.nn.functional.interpolate(picture[None], CROP // 2, mode="area")
        crop = half[0].permute(1, 2, 0).reshape(1, 1, -1).expand(1, 2, -1)
        box = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 2, 4)
        regions = featurizer(Scenes(picture[None], crop, box, [[]], [[]]))
        memory = net.encode(known, regions)
        best = constrained_beam(
            lambda prefix, m=memory: net.next_log_probs(m, prefix),  # type: ignore[misc]
            beam,
            net.max_length,
            must,
        )
        found.append(vocabulary.decode(best[0].ids) if best else "")
    return found
