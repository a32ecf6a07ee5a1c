"""What a GPU model can be cut into: one JSON file per board under ``boards/``."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from .errors import InputError
from .profiles import ProfileName

__all__ = ["Board", "ComputeProfile", "GpuProfile", "board_names", "load_board"]

_ALIASES = {
    "a100": "a100-80gb",
    "a30": "a30-24gb",
    "h100": "h100-80gb",
    "h200": "h200-141gb",
    "gh200": "gh200-144gb",
    "b200": "b200-180gb",
    "rtx-pro-6000": "rtx-pro-6000-96gb",
}


@dataclass(frozen=True)
class ComputeProfile:
    """One way to cut a GPU instance into compute instances.

    Parameters
    ----------
    compute_slices : int
        Slices of one compute instance.
    enum, id : int
        Index for the profile query and the id that the driver takes.
    count : int
        How many fit into one GPU instance.
    multiprocessors : int
        Streaming multiprocessors of one compute instance.
    starts : tuple of int
        Legal first slices inside the GPU instance.
    """

    compute_slices: int
    enum: int
    id: int
    count: int
    multiprocessors: int
    starts: tuple[int, ...]


@dataclass(frozen=True)
class GpuProfile:
    """One kind of GPU instance of a board.

    Parameters
    ----------
    name : str
        Such as ``3g.40gb``.
    enum, id : int
        NVML's profile index (0..17) and the driver's id (19, 14, 9, ...), two different things.
    compute_slices : int
        Compute slices (``g``).
    size : int
        Memory slices that the instance occupies; 3g occupies four, 7g all eight.
    starts : tuple of int
        Legal first memory slices, in the order in which the driver tries them.
    count : int
        How many fit on one GPU.
    multiprocessors : int
        Streaming multiprocessors; not a multiple of `compute_slices` in general.
    memory_mib : int
        Memory in MiB.
    copy_engines, decoders, encoders, jpeg, ofa : int
        Engines of each kind.
    verified : bool
        The row was read from a listing of a real driver.
    source : str
        Where the row comes from.
    compute_profiles : tuple of ComputeProfile
        How the instance can be cut further.
    """

    name: str
    enum: int
    id: int
    compute_slices: int
    size: int
    starts: tuple[int, ...]
    count: int
    multiprocessors: int
    memory_mib: int
    copy_engines: int
    decoders: int
    encoders: int
    jpeg: int
    ofa: int
    verified: bool
    source: str
    compute_profiles: tuple[ComputeProfile, ...]

    @property
    def parsed(self) -> ProfileName:
        """The name taken apart."""
        return ProfileName.parse(self.name)

    @property
    def takes_media_extension(self) -> bool:
        """``+me`` or ``+me.all``: at most one such instance exists on a GPU."""
        return any(a.startswith("me") for a in self.parsed.attributes)

    @property
    def mask(self) -> int:
        """Bit mask of the memory slices that the instance occupies when placed at slice 0."""
        return (1 << self.size) - 1

    def compute_profile(self, compute_slices: int) -> ComputeProfile:
        """Find the compute instance profile with this many slices.

        Raises
        ------
        InputError
            The GPU instance cannot be cut that way.
        """
        for profile in self.compute_profiles:
            if profile.compute_slices == compute_slices:
                return profile
        allowed = ", ".join(f"{p.compute_slices}c" for p in self.compute_profiles)
        raise InputError.of(f"compute slices in {self.name}", f"{compute_slices}c", allowed)


@dataclass(frozen=True)
class Board:
    """Geometry of one GPU model.

    Parameters
    ----------
    name : str
        Such as ``a100-80gb``.
    product : str
        Name that the driver reports.
    architecture : str
        ``ampere``, ``hopper`` or ``blackwell``.
    compute_capability : tuple of int
        CUDA compute capability.
    memory_mib : int
        Memory of the whole GPU in MiB.
    compute_slices, memory_slices : int
        How many slices the GPU has of each kind.
    pci_device_id : int
        Device and vendor id, as mig-parted's ``device-filter`` writes it.
    mode_change : str
        ``reset`` where switching MIG mode resets the GPU, ``live`` where it does not.
    power_limit_watts, idle_power_watts : float
        Used by the simulator's energy counter.
    source, note : str
        Where the table comes from and what is uncertain in it.
    gpu_profiles : tuple of GpuProfile
        Everything the GPU can be cut into.
    """

    name: str
    product: str
    architecture: str
    compute_capability: tuple[int, int]
    memory_mib: int
    compute_slices: int
    memory_slices: int
    pci_device_id: int
    mode_change: str
    power_limit_watts: float
    idle_power_watts: float
    source: str
    note: str
    gpu_profiles: tuple[GpuProfile, ...]

    def __repr__(self) -> str:
        return f"Board({self.name!r}: {', '.join(p.name for p in self.gpu_profiles)})"

    def profile(self, name: str) -> GpuProfile:
        """Find a GPU instance profile by name.

        Raises
        ------
        InputError
            The board has no such profile.

        Examples
        --------
        >>> load_board("a100-40gb").profile("3g.20gb").size
        4
        """
        for profile in self.gpu_profiles:
            if profile.name == name:
                return profile
        allowed = ", ".join(p.name for p in self.gpu_profiles)
        raise InputError.of(f"profile of {self.name}", name, allowed)

    def profile_by_id(self, profile_id: int) -> GpuProfile:
        """Find a GPU instance profile by the driver's id (19, 14, 9, ...)."""
        for profile in self.gpu_profiles:
            if profile.id == profile_id:
                return profile
        allowed = ", ".join(f"{p.id} ({p.name})" for p in self.gpu_profiles)
        raise InputError.of(f"profile id of {self.name}", profile_id, allowed)

    def selected_profiles(
        self, *, double_memory: bool = True, media: bool = True
    ) -> tuple[GpuProfile, ...]:
        """Profiles of the board, with or without its special kinds.

        Parameters
        ----------
        double_memory : bool
            Keep the 1g profile that has the memory of a 2g.
        media : bool
            Keep the profiles with an attribute (``+me``, ``+gfx``, ``+me.all``, ``-me``).

        Examples
        --------
        >>> board = load_board("a100-40gb")
        >>> [p.name for p in board.selected_profiles(double_memory=False, media=False)]
        ['1g.5gb', '2g.10gb', '3g.20gb', '4g.20gb', '7g.40gb']
        """
        kept = []
        for profile in self.gpu_profiles:
            name = profile.parsed
            if not media and (name.attributes or name.without_media):
                continue
            if not double_memory and profile.compute_slices == 1 and profile.size > 1:
                continue
            kept.append(profile)
        return tuple(kept)


def board_names() -> tuple[str, ...]:
    """Names of the boards that come with the package.

    Examples
    --------
    >>> "h200-141gb" in board_names()
    True
    """
    folder = resources.files("migperf") / "boards"
    return tuple(
        sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json"))
    )


@functools.cache
def load_board(name: str) -> Board:
    """Read a board's table.

    Parameters
    ----------
    name : str
        One of `board_names`, or a short form such as ``a100`` or ``h200``.

    Raises
    ------
    InputError
        There is no such board.

    Examples
    --------
    >>> load_board("a100-80gb").profile("7g.80gb").multiprocessors
    98
    """
    known = board_names()
    resolved = _ALIASES.get(name, name)
    if resolved not in known:
        raise InputError.of("board", name, ", ".join(known))
    text = (resources.files("migperf") / "boards" / f"{resolved}.json").read_text(encoding="utf-8")
    return board_from_json(json.loads(text))


def board_from_json(data: dict[str, Any]) -> Board:
    """Build a `Board` from the parsed JSON of a board file."""
    profiles = []
    for row in data["gpu_profiles"]:
        compute = tuple(
            ComputeProfile(**{**c, "starts": tuple(c["starts"])}) for c in row["compute_profiles"]
        )
        profiles.append(
            GpuProfile(**{**row, "starts": tuple(row["starts"]), "compute_profiles": compute})
        )
    major, minor = data["compute_capability"]
    rest = {k: v for k, v in data.items() if k not in ("gpu_profiles", "compute_capability")}
    rest["pci_device_id"] = int(data["pci_device_id"], 16)
    return Board(compute_capability=(major, minor), gpu_profiles=tuple(profiles), **rest)
