"""Miniatures, converters, checks, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cyclopts

from ..errors import VerdictError, require
from .common import Json, print_json, show_table, status_line


def train_mini(
    kind: str,
    /,
    *,
    corpus: Path,
    out: Path,
    steps: int | None = None,
    tokenizer: str = "new",
    seed: int = 0,
    threads: int = 1,
    json: Json = False,
) -> None:
    """Train a miniature as the bundled ones were; an interrupted training continues.

    The corpus of the bundled weights is the King James Bible, one verse a line. Debian's package
    bible-kjv-text carries it: `apt-get install bible-kjv`, then
    `bible -f gen1:1-rev22:21 > kjv.txt`.

    Example: `mlm-consistency train-mini bert --corpus kjv.txt --out mini/`

    Parameters
    ----------
    kind
        `bert` or `t5`.
    corpus
        Text, one sentence a line.
    out
        Folder for weights (fp16), tokenizer and manifest.
    steps
        Optimiser steps; those of the bundled weights by default.
    tokenizer
        `new` (trained on the corpus, as the bundled ones were), `bundled` or a tokenizer.json.
    seed
        Seed; with one thread the same seed gives the same bytes on one machine.
    threads
        Threads of torch.
    json
        Print the manifest.
    """
    import torch

    from .. import mini

    require(kind in ("bert", "t5"), "kind", kind, "'bert' or 't5'")
    require(threads >= 1, "threads", threads, "at least 1")
    changes: dict[str, Any] = {"seed": seed}
    if steps is not None:
        changes |= {"steps": steps, "warmup": min(100, max(1, steps // 10))}
    config = mini.bert_config(**changes) if kind == "bert" else mini.t5_config(**changes)
    torch.set_num_threads(threads)
    say = status_line()
    given: Path | None = None if tokenizer == "new" else Path(tokenizer)
    if tokenizer == "bundled":
        given = mini.bundled(f"mini-{kind}") / "tokenizer.json"
    manifest = mini.train(
        corpus,
        out,
        config,
        lambda step, loss: say(f"step {step} of {config.steps}, {loss:.3f}"),
        tokenizer=given,
    )
    if json:
        print_json(manifest)
    else:
        print(f"held-out loss {manifest['held_out_loss']}, weights in {out}")


zoo_app = cyclopts.App(
    name="zoo",
    help="""Real masked models inside PyPI wheels.

    Examples:

    - `pip download --no-deps sapiens==1.0.3`
    - `mlm-consistency zoo convert sapiens-1.0.3-py3-none-any.whl --out sapiens-h/`
    - `mlm-consistency score ./sapiens-h sequences.txt`
    """,
)


@zoo_app.command(name="convert")
def zoo_convert(wheel: Path, /, *, out: Path, chain: str = "H") -> None:
    """Convert the model in a wheel to a Hugging Face folder; nothing of the wheel is installed.

    Parameters
    ----------
    wheel
        sapiens-1.0.3 or antiberty-0.1.3.
    out
        Folder.
    chain
        `H` or `L` (Sapiens).
    """
    from ..zoo import convert

    manifest = convert(wheel, out, chain)
    print(f"{manifest['model']}: {manifest['parameters']} parameters in {out}")


def doctor(*, json: Json = False) -> None:
    """Check the installation: bundled models, their checksums, exactness on a known joint.

    Parameters
    ----------
    json
        Print JSON.
    """
    from ..doctor import run_checks

    checks = run_checks()
    if json:
        print_json(checks)
    else:
        show_table("doctor", ["check", "found", "good"],
               [[c["name"], c["found"], "yes" if c["good"] else "NO"] for c in checks])  # fmt: skip
    bad = [c["name"] for c in checks if not c["good"]]
    if bad:
        raise VerdictError(f"doctor: {', '.join(bad)}")


def demo(*, out: Path, seed: int = 0) -> None:
    """Show the paper's claim with the bundled models on real sentences.

    Example: `mlm-consistency demo --out out/`

    Parameters
    ----------
    out
        Folder for result.json, report.html and the figures.
    seed
        Choice of sentences, pairs and wrong answers.
    """
    from ..demo import run_demo

    require(0 <= seed < 2**31, "seed", seed, "0 to 2**31 - 1")
    result = run_demo(out, seed, status_line())
    rows = [[c["name"], f"{c['measured']} {c['unit']}", str(c["met"])] for c in result["claims"]]
    show_table(f"demo: {result['seconds']} s", ["claim", "measured", "met"], rows)
