"""``migperf enumerate`` and ``migperf profiles``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from ..boards import load_board
from ..layout import Layout, enumerate_layouts
from .common import gpu_of, open_node, print_json, print_table

__all__ = ["enumerate_command", "place", "profiles"]


def enumerate_command(
    board: str,
    *,
    maximal: bool = False,
    multisets: bool = False,
    double_memory: bool = False,
    media: bool = False,
    count: bool = False,
    json: bool = False,
) -> int:
    """List the layouts of a board.

    Example: migperf enumerate a100-80gb --maximal --count

    Parameters
    ----------
    board : str
        Such as a100-80gb.
    maximal : bool
        Only layouts to which nothing can be added.
    multisets : bool
        Do not tell places apart.
    double_memory : bool
        Also use the 1g profile with the memory of a 2g.
    media : bool
        Also use the profiles with media engines or graphics (+me, +gfx, -me).
    count : bool
        Print the number only.
    json : bool
        Print JSON.
    """
    layouts = enumerate_layouts(
        board, maximal, not multisets, double_memory=double_memory, media=media
    )
    if count:
        print(len(layouts))
    elif json:
        print_json([layout.to_json() for layout in layouts])
    else:
        for layout in layouts:
            print(" + ".join(layout.multiset) if multisets else layout)
    return 0


def place(layout: str, *, board: str = "a100-80gb", json: bool = False) -> int:
    """Place a layout on a board, or say why that is impossible (exit code 3).

    Example: migperf place "3g.40gb@4, 2g.20gb, 1g.10gb*2" --board a100-80gb

    Parameters
    ----------
    layout : str
        PROFILE[@START][*COUNT], separated by commas.
    board : str
        Board name.
    json : bool
        Print JSON.
    """
    placed = Layout.parse(layout).solve(load_board(board))
    if json:
        print_json(placed.to_json())
    else:
        print(placed)
    return 0


def profiles(
    *,
    board: str | None = None,
    gpu: Annotated[int, Parameter(name=["--gpu", "-i"])] = 0,
    sim: str | None = None,
    json: bool = False,
) -> int:
    """List what a GPU can be cut into, and how many of each still fit.

    Examples: migperf profiles -i 0; migperf profiles --board h200-141gb

    Parameters
    ----------
    board : str
        Read the table of a board instead of a GPU.
    gpu : int
        GPU index.
    sim : str
        State file or name of a simulated machine.
    json : bool
        Print JSON.
    """
    remaining: dict[str, int | None] = {}
    if board is not None:
        found = load_board(board)
    else:
        with open_node(sim) as node:
            target = gpu_of(node, gpu)
            found = target.board
            mode = target.mig_mode()
            for profile in found.gpu_profiles:
                on = mode is not None and mode[0]
                remaining[profile.name] = target.remaining(profile.name) if on else None
    rows = [
        {
            "profile": p.name,
            "id": p.id,
            "count": p.count,
            "remaining": remaining.get(p.name),
            "memory_gib": round(p.memory_mib / 1024, 2),
            "multiprocessors": p.multiprocessors,
            "memory_slices": p.size,
            "starts": sorted(p.starts),
            "verified": p.verified,
        }
        for p in found.gpu_profiles
    ]
    if json:
        print_json({"schema_version": 1, "board": found.name, "profiles": rows})
    else:
        print_table(
            f"{found.name} ({found.product})",
            list(rows[0]),
            [["-" if v is None else v for v in row.values()] for row in rows],
        )
    return 0
