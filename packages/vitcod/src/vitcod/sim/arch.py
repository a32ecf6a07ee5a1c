"""Constants of the accelerator: section 1.8 of the paper, and an energy table of our choice."""

from __future__ import annotations

from dataclasses import dataclass

from vitcod.errors import InputError


@dataclass(frozen=True)
class Architecture:
    """One accelerator configuration; operands are one byte.

    Parameters
    ----------
    lines, macs_per_line : 64 x 8 = 512 multiply-accumulate units
    frequency : Hz
    bandwidth : bytes per second of DRAM
    sram : bytes on chip
    coder_lines : extra lines of the encoder and decoder engines
    softmax_lanes : elements per cycle of each of the two engines
    mac_energy, sram_energy, dram_energy : pJ per MAC, per SRAM byte, per DRAM byte: the 45 nm table
        of Horowitz (ISSCC 2014) scaled by one half to 28 nm
    """

    name: str = "vitcod-28nm"
    lines: int = 64
    macs_per_line: int = 8
    frequency: float = 5e8
    bandwidth: float = 76.8 * 2**30
    sram: int = 320 * 1024
    coder_lines: int = 16
    softmax_lanes: int = 8
    mac_energy: float = 0.115
    sram_energy: float = 1.0
    dram_energy: float = 81.0

    @property
    def macs(self) -> int:
        """Multiply-accumulates per cycle."""
        return self.lines * self.macs_per_line

    @property
    def bytes_per_cycle(self) -> float:
        """DRAM bytes per cycle."""
        return self.bandwidth / self.frequency


ARCHITECTURES = {"vitcod-28nm": Architecture()}


def architecture(name: str | Architecture) -> Architecture:
    """Look an architecture up by name.

    Raises
    ------
    InputError
        An unknown name.
    """
    if isinstance(name, Architecture):
        return name
    if name not in ARCHITECTURES:
        raise InputError(f"arch={name!r} is not allowed: one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]
