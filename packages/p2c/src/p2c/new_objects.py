"""Objects added at run time, by one line each: another name of a word, or words that describe it.

As NOC-REK does with Wiktionary's definitions, a new noun takes its vector from words that the
captioner knows. Embeddings are tied and frozen, so the new row can be read as a tag and be written.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import yaml
from torch import nn

from .captioner import TagTransformerCaptioner
from .errors import InputError, require
from .vocabulary import SPECIAL, UNK, Vocabulary, tokenize


def read_objects(path: str | Path) -> dict[str, str]:
    """Read ``name: description`` lines of a YAML file.

    Raises
    ------
    InputError
        It is no YAML file, or no mapping from a word to a text.
    """
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())[:120]
        raise InputError(f"objects = {str(path)!r}: allowed is a YAML file; {text}") from None
    good = isinstance(found, dict) and all(isinstance(v, str) for v in found.values())
    require(good, "objects", str(path), "lines of the form name: words that describe it")
    return {str(k): v for k, v in found.items()}


def add_objects(
    captioner: TagTransformerCaptioner, vocabulary: Vocabulary, objects: Mapping[str, str]
) -> tuple[TagTransformerCaptioner, Vocabulary]:
    """Return a captioner and a vocabulary that know more objects; nothing is trained.

    Parameters
    ----------
    captioner : TagTransformerCaptioner
        Is not changed.
    vocabulary : Vocabulary
        Of the captioner.
    objects : mapping
        New word to a description: the mean of its known words' vectors, stretched to their mean
        length, becomes the new word's. A description of one word makes another name of that word.

    Raises
    ------
    InputError
        A new word is known, is not one word, or nothing of its description is known.

    Examples
    --------
    >>> v = Vocabulary(["horse", "horn"])
    >>> net = TagTransformerCaptioner(torch.randn(7, 8), 3, 1, 2, 4)
    >>> bigger, words = add_objects(net, v, {"unicorn": "a horse with a horn"})
    >>> words.words[-1], bigger.words.weight.shape
    ('unicorn', torch.Size([8, 8]))
    """
    table = captioner.words.weight.detach()
    rows = []
    for name, description in objects.items():
        require(tokenize(name) == [name], "objects", name, "one lower-case word each")
        require(name not in vocabulary.index, "objects", name, "a word that is not yet known")
        known = [n for n in vocabulary.ids(description) if n > UNK]
        require(bool(known), f"objects: {name}", description, "a description with known words")
        mean = table[known].mean(0)
        length = table[known].norm(dim=1).mean()
        rows.append(mean * length / mean.norm().clamp(min=1e-12))
    if not rows:
        return captioner, vocabulary
    bigger = copy.deepcopy(captioner)
    whole = torch.cat([table, torch.stack(rows)])
    frozen = not captioner.words.weight.requires_grad
    bigger.words = nn.Embedding.from_pretrained(whole, freeze=frozen)
    return bigger, Vocabulary([*vocabulary.words[len(SPECIAL) :], *objects])


def rename(caption: str, tags: Sequence[str], objects: Mapping[str, str]) -> str:
    """Call a thing by its new name where that is the one that was tagged.

    Two names of one word have one vector, so a captioner cannot prefer either.

    Examples
    --------
    >>> rename("a couch near a cat", ["settee", "cat"], {"settee": "couch"})
    'a settee near a cat'
    """
    for name, description in objects.items():
        old = tokenize(description)
        if len(old) == 1 and name in tags and old[0] not in tags:
            words = caption.split()
            if name not in words:
                caption = " ".join(name if w == old[0] else w for w in words)
    return caption
