"""The grammar of MIG profile names: ``1g.5gb``, ``2c.3g.20gb``, ``1g.10gb+me``, ``1g.24gb-me``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from .errors import InputError

__all__ = ["ProfileName", "memory_label_gb"]

_PATTERN = re.compile(
    r"^(?:(?P<c>[1-9]\d?)c\.)?(?P<g>[1-9]\d?)g\.(?P<gb>[1-9]\d*)gb"
    r"(?:\+(?P<plus>[a-z.]+(?:,[a-z.]+)*)|-(?P<minus>[a-z.]+))?$"
)
_ATTRIBUTES = ("gfx", "me", "me.all")
_RULE = "[<c>c.]<g>g.<gb>gb[+me|+gfx|+me.all|-me], for example 1g.5gb, 2c.3g.20gb, 1g.10gb+me"


@dataclass(frozen=True, order=True)
class ProfileName:
    """A parsed profile name.

    Parameters
    ----------
    compute : int
        Compute slices of the compute instance (``c``); equal to `graphics` when left out.
    graphics : int
        Compute slices of the GPU instance (``g``).
    gigabytes : int
        Memory label in GB; a label, not a size (see `memory_label_gb`).
    attributes : tuple of str
        Added engines, sorted: ``gfx``, ``me``, ``me.all``.
    without_media : bool
        The name ends in ``-me``: none of the media engines.

    Examples
    --------
    >>> name = ProfileName.parse("2c.3g.20gb")
    >>> name.compute, name.graphics, name.gpu_profile
    (2, 3, '3g.20gb')
    >>> str(ProfileName.parse("1g.10gb+me"))
    '1g.10gb+me'
    """

    compute: int
    graphics: int
    gigabytes: int
    attributes: tuple[str, ...] = ()
    without_media: bool = False

    @classmethod
    def parse(cls, text: str) -> ProfileName:
        """Read a profile name.

        Raises
        ------
        InputError
            The text does not follow the grammar, or asks for more compute slices than the GPU
            instance has.
        """
        match = _PATTERN.match(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise InputError.of("profile", text, _RULE)
        graphics = int(match["g"])
        compute = int(match["c"] or graphics)
        if compute > graphics:
            raise InputError.of("profile", text, f"at most {graphics}c in a {graphics}g instance")
        attributes = tuple(sorted(match["plus"].split(","))) if match["plus"] else ()
        if any(a not in _ATTRIBUTES for a in attributes) or len(set(attributes)) < len(attributes):
            raise InputError.of("profile", text, _RULE)
        if match["minus"] not in (None, "me"):
            raise InputError.of("profile", text, _RULE)
        return cls(compute, graphics, int(match["gb"]), attributes, match["minus"] is not None)

    @property
    def gpu_profile(self) -> str:
        """Name of the GPU instance profile, without the compute part."""
        suffix = "-me" if self.without_media else "".join(("+", ",".join(self.attributes)))
        return f"{self.graphics}g.{self.gigabytes}gb{suffix if len(suffix) > 1 else ''}"

    @property
    def is_whole(self) -> bool:
        """Whether one compute instance takes the whole GPU instance."""
        return self.compute == self.graphics

    def __str__(self) -> str:
        return self.gpu_profile if self.is_whole else f"{self.compute}c.{self.gpu_profile}"


def memory_label_gb(memory_mib: float, total_mib: float) -> int:
    """Memory figure of a profile name from the instance's and the device's memory.

    The driver's naming rule: the fraction is rounded up to eighths, the total to whole GiB.

    Parameters
    ----------
    memory_mib, total_mib : float
        Memory of the instance and of the whole GPU in MiB.

    References
    ----------
    NVIDIA go-nvlib, ``pkg/nvlib/device/mig_profile.go``.

    Examples
    --------
    >>> memory_label_gb(4864, 40960), memory_label_gb(20096, 40960)
    (5, 20)
    """
    fraction = math.ceil(memory_mib / total_mib * 8) / 8
    return int(fraction * math.ceil(total_mib / 1024) + 0.5)
