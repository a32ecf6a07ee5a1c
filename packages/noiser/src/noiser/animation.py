"""Animated GIF, WebP and PNG: one tone for all frames, so that nothing flickers."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageSequence

from noiser.enhancement import Enhancer, is_one_colour, to_type
from noiser.errors import InputError
from noiser.files import write_atomically
from noiser.metrics import as_float
from noiser.video import VideoEnhancer

if TYPE_CHECKING:
    from jaxtyping import UInt8

_FORMATS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}
# Frames on which the tone is measured.
_SAMPLES = 8


@dataclass(frozen=True, eq=False)
class Animation:
    """Frames of an animated image file.

    Parameters
    ----------
    frames : (frames, height, width, 3) uint8
    alpha : (frames, height, width) uint8, or None where every frame is opaque
    durations : milliseconds of each frame
    loop : how often it is shown, 0 for ever
    """

    frames: UInt8[np.ndarray, "frames height width 3"]
    alpha: UInt8[np.ndarray, "frames height width"] | None
    durations: tuple[float, ...]
    loop: int


def is_animated(path: Path) -> bool:
    """Whether a file is an animation that can be written again: GIF, WebP or PNG of many frames."""
    if path.suffix.lower() not in _FORMATS:
        return False
    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1) > 1
    except Exception:  # damaged: the reader of single images says in words what is wrong
        return False


def read_animation(path: Path | str) -> Animation:
    """Read all frames.

    Raises
    ------
    InputError
        The file cannot be read.
    """
    frames, durations = [], []
    try:
        with Image.open(path) as image:
            loop = int(image.info.get("loop", 0))
            for frame in ImageSequence.Iterator(image):
                frames.append(np.asarray(frame.convert("RGBA")))
                # After decoding: WebP tells the duration only then.
                durations.append(float(frame.info.get("duration", 100)))
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise InputError(
            f"image={str(path)!r} is not a readable animation ({error.__class__.__name__}):"
            " name a complete GIF, WebP or PNG file"
        ) from error
    samples = np.stack(frames)
    alpha = samples[..., 3]
    return Animation(
        np.ascontiguousarray(samples[..., :3]),
        None if (alpha == 255).all() else alpha.copy(),
        tuple(durations),
        loop,
    )


def enhance_frames(
    frames: UInt8[np.ndarray, "frames height width 3"], enhancer: Enhancer
) -> UInt8[np.ndarray, "frames height width 3"]:
    """Enhance frames that belong together.

    Parameters
    ----------
    frames : (frames, height, width, 3) uint8
    enhancer : method and dials. "paper" follows the frames as `VideoEnhancer` does; of the other
        methods the curve is measured once, on frames spread over the whole, and has no detail step

    Returns
    -------
    frames of the same shape and type
    """
    settings = enhancer.settings
    if settings.method == "paper":
        video = VideoEnhancer("paper", enhancer.model, threads=settings.threads)
        return np.stack([video.enhance(frame) for frame in frames])
    chosen = np.unique(np.linspace(0, len(frames) - 1, _SAMPLES).round().astype(int))
    reference = np.concatenate(frames[chosen])
    if is_one_colour(reference):
        return frames.copy()
    out = np.empty_like(frames)
    for i, frame in enumerate(frames):
        before = as_float(frame)
        lit = enhancer.map_colours(reference, before)
        out[i] = to_type(before + settings.strength * (lit - before), frame.dtype)
    return out


def encode_animation(animation: Animation, suffix: str) -> bytes:
    """Encode an animation.

    Raises
    ------
    InputError
        The format holds no animation.
    """
    if suffix not in _FORMATS:
        raise InputError(f"format={suffix!r} holds no animation: allowed are {', '.join(_FORMATS)}")
    samples: np.ndarray = animation.frames
    if animation.alpha is not None:
        samples = np.concatenate([samples, animation.alpha[..., None]], axis=3)
    images = [Image.fromarray(frame) for frame in samples]
    options: dict[str, Any] = {"duration": [round(d) for d in animation.durations]}
    if suffix == ".webp":
        options |= {"lossless": True, "exact": True}
    if suffix == ".gif":
        options["disposal"] = 2
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        _FORMATS[suffix],
        save_all=True,
        append_images=images[1:],
        loop=animation.loop,
        **options,
    )
    return buffer.getvalue()


def enhance_animation(source: Path, target: Path, enhancer: Enhancer) -> Animation:
    """Enhance an animated file and write it, atomically; return what was read.

    Raises
    ------
    InputError
        A file cannot be read or written.
    """
    animation = read_animation(source)
    lit = enhance_frames(animation.frames, enhancer)
    changed = Animation(lit, animation.alpha, animation.durations, animation.loop)
    write_atomically(target, encode_animation(changed, target.suffix.lower()))
    return animation
