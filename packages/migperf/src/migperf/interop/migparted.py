"""NVIDIA mig-parted's configuration files: read, write, compare, apply by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from ..boards import Board
from ..errors import InputError
from ..layout import Layout
from ..node import Gpu, Node
from ..profiles import ProfileName
from ..transition import GpuInstance

__all__ = ["ConfigEntry", "MigConfig", "export_config", "load_config", "stock_config"]


@dataclass(frozen=True)
class ConfigEntry:
    """One item of a configuration: which GPUs, and what they are cut into.

    Parameters
    ----------
    devices : "all" or tuple of int
        GPU indices.
    mig_enabled : bool
        Wanted mode.
    mig_devices : dict of str to int
        Profile names with counts; compute parts such as ``1c.3g.20gb`` are allowed.
    device_filter : tuple of int
        PCI device ids (``device << 16 | vendor``) to which the item is limited; empty means any.
    """

    devices: Literal["all"] | tuple[int, ...]
    mig_enabled: bool
    mig_devices: dict[str, int]
    device_filter: tuple[int, ...] = ()

    def concerns(self, index: int, pci_device_id: int) -> bool:
        """Whether the item speaks of this GPU."""
        if self.devices != "all" and index not in self.devices:
            return False
        return not self.device_filter or pci_device_id in self.device_filter

    def layout(self) -> Layout:
        """Wanted instances."""
        items = [
            (ProfileName.parse(n), None) for n, c in self.mig_devices.items() for _ in range(c)
        ]
        return Layout.from_profiles(items)


@dataclass(frozen=True)
class MigConfig:
    """A configuration file.

    Examples
    --------
    >>> config = MigConfig.parse('''
    ... version: v1
    ... mig-configs:
    ...   mine:
    ...   - devices: all
    ...     mig-enabled: true
    ...     mig-devices: {"3g.40gb": 1, "1g.10gb": 4}
    ... ''')
    >>> print(config.configs["mine"][0].layout())
    3g.40gb, 1g.10gb, 1g.10gb, 1g.10gb, 1g.10gb
    """

    configs: dict[str, tuple[ConfigEntry, ...]]

    @classmethod
    def parse(cls, text: str, name: str = "config") -> MigConfig:
        """Read the YAML text of a file.

        Raises
        ------
        InputError
            The text is not a configuration of version v1; names the field.
        """
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            line = str(error).replace("\n", " ")
            raise InputError(f"{name}: not YAML ({line})") from None
        if not isinstance(data, dict) or data.get("version") != "v1":
            version = data.get("version") if isinstance(data, dict) else data
            raise InputError.of(f"version of {name}", version, "v1")
        configs = data.get("mig-configs")
        if not isinstance(configs, dict) or not configs:
            raise InputError.of(f"mig-configs of {name}", configs, "a mapping of names to lists")
        return cls({str(k): _entries(v, f"{name}: mig-configs.{k}") for k, v in configs.items()})

    def get(self, name: str) -> tuple[ConfigEntry, ...]:
        """Find a configuration by name.

        Raises
        ------
        InputError
            There is none of that name.
        """
        if name not in self.configs:
            raise InputError.of("config", name, ", ".join(sorted(self.configs)))
        return self.configs[name]

    def dump(self) -> str:
        """Write the YAML text; `parse` reads it back to an equal object."""
        configs: dict[str, list[dict[str, Any]]] = {}
        for name, entries in self.configs.items():
            rows = []
            for entry in entries:
                row: dict[str, Any] = {}
                if entry.device_filter:
                    row["device-filter"] = [f"0x{i:08X}" for i in entry.device_filter]
                row["devices"] = "all" if entry.devices == "all" else list(entry.devices)
                row["mig-enabled"] = entry.mig_enabled
                row["mig-devices"] = dict(entry.mig_devices)
                rows.append(row)
            configs[name] = rows
        document = {"version": "v1", "mig-configs": configs}
        return str(yaml.safe_dump(document, sort_keys=False))


def _entries(rows: object, where: str) -> tuple[ConfigEntry, ...]:
    if not isinstance(rows, list) or not rows:
        raise InputError.of(where, rows, "a list of items")
    return tuple(_entry(row, f"{where}[{i}]") for i, row in enumerate(rows))


def _entry(row: object, where: str) -> ConfigEntry:
    fields = {"devices", "device-filter", "mig-enabled", "mig-devices"}
    if not isinstance(row, dict) or not set(row) <= fields:
        raise InputError.of(where, row, f"a mapping with {', '.join(sorted(fields))}")
    devices = row.get("devices", "all")
    if isinstance(devices, list) and all(type(d) is int and d >= 0 for d in devices):
        devices = tuple(devices)
    elif devices != "all":
        raise InputError.of(f"{where}.devices", devices, "'all' or a list of indices")
    filters = row.get("device-filter", [])
    filters = [filters] if isinstance(filters, str | int) else filters
    try:
        ids = tuple(f if isinstance(f, int) else int(f, 16) for f in filters)
    except (TypeError, ValueError):
        raise InputError.of(f"{where}.device-filter", filters, "0x20B210DE or a list") from None
    enabled = row.get("mig-enabled")
    if not isinstance(enabled, bool):
        raise InputError.of(f"{where}.mig-enabled", enabled, "true, false")
    wanted = row.get("mig-devices") or {}
    if not isinstance(wanted, dict):
        raise InputError.of(f"{where}.mig-devices", wanted, 'a mapping such as {"1g.10gb": 2}')
    for profile, count in wanted.items():
        if type(count) is not int or not 0 <= count <= 64:
            raise InputError.of(f"{where}.mig-devices.{profile}", count, "an integer from 0 to 64")
        ProfileName.parse(profile)
    if wanted and not enabled:
        raise InputError.of(f"{where}.mig-devices", wanted, "nothing where mig-enabled is false")
    return ConfigEntry(devices, enabled, {str(k): v for k, v in wanted.items()}, ids)


def load_config(path: str | Path) -> MigConfig:
    """Read a configuration file."""
    place = Path(path)
    try:
        text = place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config file: {str(path)!r} cannot be read ({error})") from None
    return MigConfig.parse(text, place.name)


def wanted_for(gpu: Gpu, entries: Sequence[ConfigEntry]) -> ConfigEntry | None:
    """Item that speaks of a GPU, or None.

    Raises
    ------
    InputError
        Two items speak of the same GPU.
    """
    found = [e for e in entries if e.concerns(gpu.index, gpu.board.pci_device_id)]
    if len(found) > 1:
        raise InputError(f"config: {len(found)} items speak of gpu {gpu.index}; allowed: one")
    return found[0] if found else None


def device_counts(instances: Sequence[GpuInstance]) -> dict[str, int]:
    """Instances as mig-parted counts them: one per compute instance."""
    counts: Counter[str] = Counter()
    for gi in instances:
        name = ProfileName.parse(gi.profile)
        for ci in gi.compute:
            full = ci.slices == name.graphics
            counts[gi.profile if full else f"{ci.slices}c.{gi.profile}"] += 1
    return dict(sorted(counts.items()))


def export_config(node: Node, name: str = "current") -> MigConfig:
    """Describe what stands now; GPUs that are cut alike share an item."""
    groups: dict[tuple[bool, tuple[tuple[str, int], ...]], list[int]] = {}
    for gpu in node.gpus:
        mode = gpu.mig_mode()
        enabled = bool(mode and mode[0])
        counts = tuple(device_counts(gpu.instances()).items()) if enabled else ()
        groups.setdefault((enabled, counts), []).append(gpu.index)
    entries = []
    for (enabled, counts), indices in groups.items():
        everyone = len(indices) == len(node.gpus)
        entries.append(ConfigEntry("all" if everyone else tuple(indices), enabled, dict(counts)))
    return MigConfig({name: tuple(entries)})


def differences(node: Node, entries: Sequence[ConfigEntry]) -> list[str]:
    """Say where the node differs from a configuration; empty where it matches."""
    out = []
    for gpu in node.gpus:
        entry = wanted_for(gpu, entries)
        if entry is None:
            continue
        mode = gpu.mig_mode()
        enabled = bool(mode and mode[0])
        if enabled != entry.mig_enabled:
            out.append(f"gpu {gpu.index}: MIG is {'on' if enabled else 'off'}")
            continue
        found = device_counts(gpu.instances()) if enabled else {}
        wanted = {k: v for k, v in sorted(entry.mig_devices.items()) if v}
        if found != wanted:
            out.append(
                f"gpu {gpu.index}: holds {found or 'nothing'} instead of {wanted or 'nothing'}"
            )
    return out


def stock_config(board: Board) -> MigConfig:
    """Build the configurations that mig-parted ships, for one board.

    Examples
    --------
    >>> from migperf.boards import load_board
    >>> stock_config(load_board("a100-40gb")).configs["all-balanced"][0].mig_devices
    {'1g.5gb': 2, '2g.10gb': 1, '3g.20gb': 1}
    """
    configs: dict[str, tuple[ConfigEntry, ...]] = {
        "all-disabled": (ConfigEntry("all", False, {}),),
        "all-enabled": (ConfigEntry("all", True, {}),),
    }
    for profile in board.gpu_profiles:
        key = "all-" + re.sub(r"\+", ".", profile.name)
        configs[key] = (ConfigEntry("all", True, {profile.name: profile.count}),)
    base = board.selected_profiles(double_memory=False, media=False)
    by_slices = {p.compute_slices: p.name for p in base}
    shape = {1: 2, 2: 1, 3: 1} if board.memory_slices == 8 else {1: 2, 2: 1}
    balanced = {by_slices[g]: n for g, n in shape.items()}
    configs["all-balanced"] = (ConfigEntry("all", True, balanced),)
    return MigConfig(configs)
