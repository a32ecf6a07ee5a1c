"""Captions and scores of pictures on disk, with the models that a run left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .association import SmallAssociation, association_probability
from .captioner import TagTransformerCaptioner
from .config import PipelineConfig
from .decode import constrained_beam
from .errors import InputError, require
from .files import load_tensors
from .formats import read_glove, read_image
from .metrics import CiderD
from .new_objects import add_objects, rename
from .paraphrase import SmallMaskedLM
from .pipeline import JUDGE_WIDTH
from .rewards import WordCosines, clip_score
from .scenes import CROP, SIZE, RegionFeaturizer, Scenes, make_scenes
from .vocabulary import MASK, UNK, Vocabulary, tokenize
from .world import world_vocabulary


@dataclass
class Checkpoint:
    """What `p2c pipeline` leaves in ``captioner.pt``."""

    captioner: TagTransformerCaptioner
    featurizer: RegionFeaturizer
    judge: SmallAssociation
    lm: SmallMaskedLM
    config: PipelineConfig


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read ``captioner.pt``: captioner, judge and language model with their weights."""
    state = load_tensors(path)
    words = len(world_vocabulary())
    try:
        config = PipelineConfig.from_dict(dict(state["config"]))
        length = config.max_length + 2
        captioner = TagTransformerCaptioner(
            state["captioner"]["words.weight"],
            state["captioner"]["regions.0.weight"].shape[1],
            config.layers,
            4,
            config.max_length,
        )
        judge = SmallAssociation(words, length, config.dim, JUDGE_WIDTH, 1)
        lm = SmallMaskedLM(words, length, config.dim)
        for name, net in (("captioner", captioner), ("judge", judge), ("lm", lm)):
            net.load_state_dict(state[name])
            net.eval()
        return Checkpoint(captioner, RegionFeaturizer(**state["featurizer"]), judge, lm, config)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())[:120]
        raise InputError(
            f"checkpoint = {str(path)!r}: allowed is captioner.pt of native models; {text}"
        ) from None


def split_words(text: str) -> list[str]:
    """Return the words of an option, separated by commas."""
    return [w.strip().lower() for w in text.split(",") if w.strip()]


def numbers_of(vocabulary: Vocabulary, words: Sequence[str], name: str) -> list[int]:
    """Return the numbers of words; one that is not known is an `InputError`."""
    for word in words:
        require(word in vocabulary.index, name, word, "a word of the vocabulary")
    return [vocabulary.index[w] for w in words]


def caption_images(
    images: Sequence[Path],
    checkpoint: str | Path,
    tags: str,
    beam: int,
    constrain: str,
    objects: Mapping[str, str] | None = None,
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
    objects : mapping, optional
        New objects and their descriptions (see `add_objects`).
    """
    loaded = load_checkpoint(checkpoint)
    objects = objects or {}
    net, vocabulary = add_objects(loaded.captioner, world_vocabulary(), objects)
    names = split_words(tags)
    known = torch.tensor([numbers_of(vocabulary, names, "tags")], dtype=torch.long).view(1, -1)
    must = [[n] for n in numbers_of(vocabulary, split_words(constrain), "constrain")]
    found = []
    for path in images:
        picture = torch.from_numpy(read_image(path, SIZE))
        half = torch.nn.functional.interpolate(picture[None], CROP // 2, mode="area")
        crop = half[0].permute(1, 2, 0).reshape(1, 1, -1).expand(1, 2, -1)
        box = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 2, 4)
        regions = loaded.featurizer(Scenes(picture[None], crop, box, [[]], [[]]))
        memory = net.encode(known, regions)
        best = constrained_beam(
            lambda prefix, m=memory: net.next_log_probs(m, prefix),  # type: ignore[misc]
            beam,
            net.max_length,
            must,
        )
        found.append(rename(vocabulary.decode(best[0].ids), names, objects) if best else "")
    return found


BANK = 47


def score_caption(
    image: Path,
    caption: str,
    checkpoint: str | Path,
    tags: Sequence[str] = (),
    references: Sequence[str] = (),
) -> dict[str, float]:
    """Return every reward term of a caption of a picture, unweighted and with its clamp.

    The association is a probability of retrieval: among the picture and 47 rendered scenes, and
    among the caption and their 47 captions. CIDEr has the document frequencies of the same bank.
    """
    loaded, vocabulary = load_checkpoint(checkpoint), world_vocabulary()
    length = loaded.config.max_length
    picture = torch.from_numpy(read_image(image, SIZE))
    bank = make_scenes(BANK, 4_711, (0.3, 0.4, 0.3), rich=0.7)
    texts = [caption, *(r[0] for r in bank.references)]
    ids = vocabulary.encode_all(texts, length)
    with torch.no_grad():
        pictures = loaded.judge.encode_image(torch.cat([picture[None], bank.images]))
        captions = loaded.judge.encode_text(ids)
        a = association_probability(pictures, captions, loaded.judge.scale)[0]
        here = ids[:1]
        words = [n for n in here[0].tolist() if n > UNK]
        fluency = []
        for place in range(len(words)):  # pseudo-log-likelihood: each word masked in turn
            masked = here.clone()
            masked[0, place] = MASK
            scores = loaded.lm(masked)[0, place].log_softmax(-1)
            fluency.append(float(scores[here[0, place]]))
    if loaded.config.vectors:
        vectors = torch.from_numpy(read_glove(loaded.config.vectors, vocabulary.words))
    else:
        vectors = loaded.lm.words.weight.detach()
        vectors = vectors - vectors.mean(0)
    cosines = WordCosines(vectors)
    found = {
        "association": min(0.8, float(a)),
        "cosine": float(pictures[0] @ captions[0]),
        "clipscore": float(clip_score(loaded.judge, pictures[:1], ids[:1, None])),
        "coverage": cosines.coverage(numbers_of(vocabulary, tags, "tags"), words),
        "repetition": cosines.repetition(words),
        "fluency": sum(fluency) / len(fluency) if fluency else 0.0,
    }
    if references:
        lines: dict[Any, Any] = {
            k: [" ".join(tokenize(r)) for r in refs] for k, refs in enumerate(bank.references)
        }
        lines[BANK] = [" ".join(tokenize(r)) for r in references]
        found["cider"] = CiderD(lines).score(BANK, " ".join(tokenize(caption)))
    return found
