"""Video: statistics that follow the exposure at once and the content slowly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

import numpy as np

from noiser.enhancement import Enhancer, Settings, is_one_colour, zscore_of
from noiser.errors import InputError
from noiser.image_array import check_image
from noiser.metrics import luma
from noiser.network import SelfRegressionModel
from noiser.statistics import PatchStatistics
from noiser.tone import DEVIATION_FLOOR, ToneCurve

if TYPE_CHECKING:
    from jaxtyping import Num

VideoMethod = Literal["plus", "paper", "closed_form"]
State = TypeVar("State", PatchStatistics, ToneCurve)
# Samples per side of the reduced luma in which frames are compared.
_GRID = 96
# Mean change of the exposure-corrected luma, relative to its deviation, that makes a cut.
_CUT = 0.6
# A gain beyond this, or below its inverse, is a cut too: no camera's exposure jumps that far.
_MOST_GAIN = 2.0


@dataclass
class _Shot:
    """What is remembered of the frames since the last cut."""

    reduced: np.ndarray
    state: PatchStatistics | ToneCurve


def exposure_ratio(before: np.ndarray, now: np.ndarray) -> float:
    """Gain from one frame to the next: median ratio of the luma where both are well above black.

    Parameters
    ----------
    before, now : reduced luma of two frames, one shape

    Returns
    -------
    ratio in 1/8 ... 8; 1 where too few pixels can be compared
    """
    usable = (before > 4 / 255) & (now > 4 / 255) & (before < 0.97) & (now < 0.97)
    if usable.sum() < 32:
        return 1.0
    return float(np.clip(np.median(now[usable] / before[usable]), 1 / 8, 8))


def scaled(statistics: PatchStatistics, gain: float) -> PatchStatistics:
    """Statistics of the same image with `gain` times the values in [0, 1]."""
    mean = gain * (statistics.mean + 1) - 1
    return PatchStatistics(statistics.count, mean, gain**2 * statistics.covariance)


def blended(old: PatchStatistics, new: PatchStatistics, share: float) -> PatchStatistics:
    """Weighted mean of two sets of statistics, `share` of the new one."""
    return PatchStatistics(
        new.count,
        old.mean + share * (new.mean - old.mean),
        old.covariance + share * (new.covariance - old.covariance),
    )


def scaled_curve(curve: ToneCurve, gain: float) -> ToneCurve:
    """Tone curve that does to `gain` times the values what `curve` does to the values."""
    factor = gain**curve.exponent
    return replace(
        curve,
        channel_mean=factor * curve.channel_mean,
        channel_deviation=factor * curve.channel_deviation,
        luma_mean=factor * curve.luma_mean,
        luma_deviation=factor * curve.luma_deviation,
    )


def blended_curve(old: ToneCurve, new: ToneCurve, share: float) -> ToneCurve:
    """Curve between two, `share` of the new one.

    Notes
    -----
    Everything is averaged geometrically: the logarithm of the mean of a power is nearly linear in
    the exponent, so that the moments stay those of the exponent that they are used with. A channel
    that was black begins at the deviation floor.
    """

    def between(a: Any, b: Any) -> Any:
        floor = DEVIATION_FLOOR
        return np.maximum(a, floor) ** (1 - share) * np.maximum(b, floor) ** share

    return ToneCurve(**{f.name: between(getattr(old, f.name), getattr(new, f.name))
                        for f in fields(ToneCurve)})  # fmt: skip


class VideoEnhancer:
    """Enhance the frames of a video without flicker and without pumping.

    Parameters
    ----------
    method : "plus" (tone curve with kept colours and detail), "paper" (the network) or
        "closed_form" (z-score and tanh)
    model : network of the method "paper"; None for the one that ships with the package
    half_life : seconds after which a change of the content has half arrived; 0 for none
    frame_rate : frames per second
    threads : None for all cores

    Raises
    ------
    InputError
        An argument is out of range.

    Notes
    -----
    A frame's own statistics would cancel every change of the exposure, but a lamp that comes into
    view would darken the rest at once. Smoothed statistics do the opposite. Here the gain between
    two frames is estimated and applied to the remembered statistics at once; only what is left,
    the change of the content, is smoothed. A cut starts anew, and so does a jump of the exposure by
    more than one stop. Of "plus", the whole tone curve is
    remembered in this way; base and detail are those of the frame.

    Examples
    --------
    >>> import numpy as np
    >>> scene = np.random.default_rng(0).random((48, 64, 3)).cumsum(axis=1) / 64
    >>> frames = [(scene * gain).astype(np.uint8) for gain in (60, 66, 54)]
    >>> means = [out.mean() for out in VideoEnhancer("closed_form").frames(frames)]
    >>> bool(max(means) - min(means) < 1)
    True
    """

    def __init__(
        self,
        method: VideoMethod = "paper",
        model: SelfRegressionModel | None = None,
        half_life: float = 0.5,
        frame_rate: float = 30.0,
        threads: int | None = None,
    ) -> None:
        if method not in get_args(VideoMethod):
            raise InputError(
                f"method={method!r} is not allowed for video: one of"
                f" {', '.join(get_args(VideoMethod))}"
            )
        if not (math.isfinite(half_life) and half_life >= 0):
            raise InputError(f"half_life={half_life} is not allowed: seconds, 0 or more")
        if not (math.isfinite(frame_rate) and frame_rate > 0):
            raise InputError(f"frame_rate={frame_rate} is not allowed: frames per second above 0")
        self._enhancer = Enhancer(model, Settings(method, threads=threads))
        self._share = 1.0 if half_life == 0 else 1 - 0.5 ** (1 / (half_life * frame_rate))
        self._shot: _Shot | None = None
        self.cuts = 0

    def __repr__(self) -> str:
        return f"VideoEnhancer({self._enhancer.settings.method}, {self.cuts} cuts so far)"

    def frames(
        self, frames: Iterable[Num[np.ndarray, "height width 3"]]
    ) -> Iterator[Num[np.ndarray, "height width 3"]]:
        """Enhance frame after frame.

        Parameters
        ----------
        frames : (height, width, 3) uint8 or uint16, all of one shape

        Yields
        ------
        enhanced frame of the same shape and type

        Raises
        ------
        InputError
            A frame is not allowed.
        """
        for frame in frames:
            yield self.enhance(frame)

    def enhance(
        self, frame: Num[np.ndarray, "height width 3"]
    ) -> Num[np.ndarray, "height width 3"]:
        """Enhance the next frame."""
        check_image(frame)
        if is_one_colour(frame):
            return frame.copy()
        step = max(1, max(frame.shape[:2]) // _GRID)
        reduced = luma(frame[::step, ::step])
        if self._enhancer.settings.method == "plus":
            curve = self._remember(
                reduced, self._enhancer.curve(frame), scaled_curve, blended_curve
            )
            return self._enhancer.run_curve(frame, curve)
        statistics = self._remember(reduced, self._enhancer.statistics(frame), scaled, blended)
        if self._enhancer.settings.method == "paper":
            return self._enhancer.run_network(frame, statistics, np.empty_like(frame))
        return zscore_of(
            frame,
            statistics.channel_mean,
            statistics.channel_deviation,
            0.5,
            self._enhancer.settings.threads,
        )

    def _remember(
        self,
        reduced: np.ndarray,
        measured: State,
        scale: Callable[[State, float], State],
        blend: Callable[[State, State, float], State],
    ) -> State:
        """Follow the exposure at once and the content slowly; `measured` anew after a cut."""
        shot = self._shot
        state = measured
        if shot is not None and shot.reduced.shape == reduced.shape:
            gain = exposure_ratio(shot.reduced, reduced)
            expected = np.clip(gain * shot.reduced, 0, 1)
            change = float(np.abs(reduced - expected).mean())
            jump = max(gain, 1 / gain) > _MOST_GAIN
            if jump or change > _CUT * max(float(expected.std()), 2 / 255):
                self.cuts += 1
            else:
                state = blend(scale(cast("State", shot.state), gain), measured, self._share)
        self._shot = _Shot(reduced, state)
        return state
