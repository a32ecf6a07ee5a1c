"""Workloads and accelerators for other tools, and look-up tables from them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nasa.hw.layer import Workload

FORMATS = ("zigzag", "scalesim", "timeloop", "json")


def to_zigzag(workload: Workload) -> str:
    """Return a ZigZag workload: YAML with one entry per layer.

    Grouped layers keep their groups in the dimension G. The operator type stands in the name:
    ZigZag knows one kind of MAC.
    """
    entries: list[dict[str, Any]] = []
    for index, layer in enumerate(workload):
        (r, s), (e, f), g = layer.kernel, layer.out, layer.groups
        padded = [
            max(0, (e - 1) * layer.stride + r - layer.height),
            max(0, (f - 1) * layer.stride + s - layer.width),
        ]
        entries.append(
            {
                "id": index,
                "name": f"{layer.name}_{layer.operator}",
                "operator_type": "Conv",
                "equation": "O[b][g][k][oy][ox]+=W[g][k][c][fy][fx]*I[b][g][c][iy][ix]",
                "dimension_relations": [
                    f"ix={layer.stride}*ox+1*fx",
                    f"iy={layer.stride}*oy+1*fy",
                ],
                "loop_dims": ["B", "G", "K", "C", "OY", "OX", "FY", "FX"],
                "loop_sizes": [1, g, layer.filters // g, layer.channels // g, e, f, r, s],
                "pr_loop_dims": ["IX", "IY"],
                "pr_loop_sizes": [layer.width, layer.height],
                "padding": [
                    [padded[1] // 2, padded[1] - padded[1] // 2],
                    [padded[0] // 2, padded[0] - padded[0] // 2],
                ],
                "operand_precision": {"W": 8, "I": 8, "O": 16, "O_final": 8},
                "operand_source": {"I": index - 1 if index else index, "W": index},
            }
        )
    return str(yaml.safe_dump(entries, sort_keys=False, default_flow_style=None))


def to_scalesim(workload: Workload) -> str:
    """Return a SCALE-Sim topology: CSV with one row per layer (per group, for grouped layers).

    SCALE-Sim knows no padding: sizes are those of the padded input.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=",\n")
    writer.writerow(
        ["Layer name", "IFMAP Height", "IFMAP Width", "Filter Height", "Filter Width", "Channels",
         "Num Filter", "Strides"]
    )  # fmt: skip
    for layer in workload:
        one = layer.one_group
        (r, s), (e, f) = one.kernel, one.out
        height, width = (e - 1) * one.stride + r, (f - 1) * one.stride + s
        writer.writerow([layer.name, height, width, r, s, one.channels, one.filters, one.stride])
    return text.getvalue()


def to_scalesim_layout(workload: Workload) -> str:
    """Return the layout file that SCALE-Sim 3 asks for: no interleaving, one row per layer."""
    header = ["Layer name", *(f"factor or order {i}" for i in range(1, 21))]
    rows = [header, *([layer.name, *["1"] * 20] for layer in workload)]
    return "".join(",".join(row) + ",\n" for row in rows)


def to_timeloop(workload: Workload) -> str:
    """Return Timeloop problem specifications, one YAML document per layer."""
    documents = []
    for layer in workload:
        (r, s), (e, f), one = layer.kernel, layer.out, layer.one_group
        shape = {
            "name": f"{layer.name}_{layer.operator}",
            "dimensions": ["C", "M", "R", "S", "P", "Q", "G"],
            "coefficients": [{"name": "stride", "default": layer.stride}],
            "data-spaces": [
                {"name": "Weights", "projection": [[["G"]], [["C"]], [["M"]], [["R"]], [["S"]]]},
                {
                    "name": "Inputs",
                    "projection": [
                        [["G"]],
                        [["C"]],
                        [["R"], ["P", "stride"]],
                        [["S"], ["Q", "stride"]],
                    ],
                },
                {
                    "name": "Outputs",
                    "projection": [[["G"]], [["M"]], [["P"]], [["Q"]]],
                    "read-write": True,
                },
            ],
        }
        instance = {
            "C": one.channels, "M": one.filters, "R": r, "S": s, "P": e, "Q": f, "G": layer.groups,
        }  # fmt: skip
        documents.append({"problem": {"shape": shape, "instance": instance}})
    return str(yaml.safe_dump_all(documents, sort_keys=False, default_flow_style=None))


def export(workload: Workload, kind: str) -> str:
    """Return a workload in a format: ``zigzag``, ``scalesim``, ``timeloop`` or ``json``."""
    if kind not in FORMATS:
        raise ValueError(f"format={kind!r}: allowed are {', '.join(FORMATS)}")
    if kind == "json":
        return json.dumps(workload.to_json(), indent=1) + "\n"
    return {"zigzag": to_zigzag, "scalesim": to_scalesim, "timeloop": to_timeloop}[kind](workload)


def read_lookup_table(path: str | Path) -> dict[str, dict[str, float]]:
    """Read a look-up table of block costs: a JSON object, or CSV with a header.

    JSON maps a block's name to its costs, or to one number (its latency), as HW-NAS-Bench's tables
    do. The first CSV column is the name, the others are costs.

    Returns
    -------
    dict
        Costs by block name, then by cost name.

    Raises
    ------
    ValueError
        If the file is missing, empty, or holds something that is no finite number.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ValueError(f"table={str(path)!r}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"table={str(path)!r} is no text") from None
    rows: dict[str, Any]
    if text.lstrip().startswith("{"):
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise ValueError(f"table={str(path)!r} is no JSON: {error}") from None
    else:
        reader = list(csv.reader(io.StringIO(text)))
        if len(reader) < 2 or len(reader[0]) < 2:
            raise ValueError(f"table={str(path)!r}: needs a header and rows of a name and numbers")
        rows = {
            row[0]: dict(zip(reader[0][1:], row[1:], strict=False)) for row in reader[1:] if row
        }
    table: dict[str, dict[str, float]] = {}
    for name, costs in rows.items():
        entry = costs if isinstance(costs, dict) else {"latency": costs}
        try:
            table[name] = {key: float(value) for key, value in entry.items()}
        except (TypeError, ValueError):
            raise ValueError(
                f"table={str(path)!r}: {name!r} holds {entry!r}, not numbers"
            ) from None
        if any(value != value or abs(value) == float("inf") for value in table[name].values()):
            raise ValueError(f"table={str(path)!r}: {name!r} holds NaN or infinity")
    if not table:
        raise ValueError(f"table={str(path)!r} is empty")
    return table


def rank_agreement(
    first: Mapping[str, Mapping[str, float]], second: Mapping[str, Mapping[str, float]], cost: str
) -> dict[str, float]:
    """Return how alike two tables rank their common blocks.

    Parameters
    ----------
    first, second : mapping
        Costs by block name, then by cost name, as :func:`read_lookup_table` returns them.
    cost : str
        The cost to compare.

    Returns
    -------
    dict
        ``spearman``, ``kendall`` (tau-b), and ``blocks``, how many both tables hold.

    Raises
    ------
    ValueError
        If they share fewer than three blocks with that cost.

    Examples
    --------
    >>> ours = {"a": {"ms": 1.0}, "b": {"ms": 2.0}, "c": {"ms": 9.0}}
    >>> rank_agreement(ours, {"a": {"ms": 3}, "b": {"ms": 4}, "c": {"ms": 5}}, "ms")
    {'spearman': 1.0, 'kendall': 1.0, 'blocks': 3}
    """
    from scipy.stats import kendalltau, spearmanr

    names = [n for n in first if cost in first[n] and cost in second.get(n, {})]
    if len(names) < 3:
        raise ValueError(f"cost={cost!r}: the tables share {len(names)} blocks with it, need 3")
    a, b = ([table[n][cost] for n in names] for table in (first, second))
    return {
        "spearman": round(float(spearmanr(a, b).statistic), 6),
        "kendall": round(float(kendalltau(a, b).statistic), 6),
        "blocks": len(names),
    }
