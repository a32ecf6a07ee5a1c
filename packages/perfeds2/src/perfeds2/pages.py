"""Pages of the commands that do not train: comparison, clock, bandwidth, choice of A, bound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from . import figures, figures_theory
from .clock import TimingLog
from .compare import FormResult, rows_as_json
from .config import ExperimentConfig
from .replay import RunBound
from .report import render, text
from .tuning import Tuning


def figure_table(title: str, values: dict[str, Any]) -> dict[str, Any]:
    """Two columns: what, and how much."""
    rows = [[name.replace("_", " "), text(value)] for name, value in values.items()]
    return {"title": title, "columns": ["figure", "value"], "rows": rows}


def compare_page(
    path: str | Path, config: ExperimentConfig, results: Sequence[FormResult], image: str
) -> Path:
    """Write the page of `perfeds2 compare`; `image` is the file with the loss curves."""
    rows = rows_as_json(results)
    columns = [c for c in rows[0] if c not in ("tried", "seeds")]
    tables = [
        {
            "title": f"Time to a loss of {config.train.target_loss:g}",
            "columns": [c.replace("_", " ") for c in columns],
            "rows": [[text(row[c]) for c in columns] for row in rows],
        }
    ]
    tried = [
        [r.form, text(step), text(seconds)] for r in results for step, seconds in r.tried.items()
    ]
    if tried:
        tables.append(
            {
                "title": "Steps tried on the tuning seeds",
                "columns": ["form", "step", "mean seconds"],
                "rows": tried,
            }
        )
    runs = [(r.form, r.runs[0]) for r in results]
    intro = [
        f"{len(results)} forms of one experiment over the same {len(results[0].runs)} seeds; "
        "seconds are simulated, and half width is that of the 95 % interval. "
        + (
            "The step of each form was tuned on other seeds."
            if tried
            else "All forms share the experiment's step, which flatters those that suit it."
        )
    ]
    return render(
        path,
        "Comparison",
        config.seed,
        intro,
        [
            ("Loss against simulated seconds", image, "A finished run keeps its last loss."),
            ("Fairness", figures.accuracy_cdf(runs), "Accuracy over UEs at the end, first seed."),
        ],
        tables,
    )


def simulate_page(
    path: str | Path, config: ExperimentConfig, log: TimingLog, summary: dict[str, Any]
) -> Path:
    """Write the page of `perfeds2 simulate`."""
    intro = [
        f"The clock alone: {config.schedule.participants} of {config.ues} UEs close a round over "
        "equal shares of the band; no weights are computed."
    ]
    return render(
        path,
        "Timing-only run",
        config.seed,
        intro,
        [
            ("Length of a round", figures.round_lengths(log.close_s), "From close to close."),
            ("Staleness", figures.staleness_histogram(log.staleness), "Rounds between weights and "
             "their use."),
            ("Participation", figures.participation_spread(log.participation(config.ues)),
             "How unequally first-A rounds serve the UEs."),
        ],
        [figure_table("Summary", summary)],
    )  # fmt: skip


def bandwidth_page(
    path: str | Path,
    ids: Int[np.ndarray, " A"],
    offset_s: Float[np.ndarray, " A"],
    bandwidth_hz: Float[np.ndarray, " A"],
    summary: dict[str, Any],
) -> Path:
    """Write the page of `perfeds2 bandwidth`: one round, UE by UE."""
    finish = float(summary["finish_s"])
    intro = [
        f"{len(ids)} UEs share the band so that all of them finish after {finish:.6g} s, as early "
        "as any split of the band allows."
    ]
    table = {
        "title": "Shares",
        "columns": ["UE", "ready after s", "bandwidth Hz"],
        "rows": [
            [str(i), text(float(a)), text(float(b))] for i, a, b in zip(ids, offset_s, bandwidth_hz)
        ],
    }
    return render(
        path,
        "Bandwidth of one round",
        None,
        intro,
        [
            (
                "Who sends when, and over how much",
                figures.upload_spans(ids, offset_s, bandwidth_hz, finish),
                "The UEs with the largest shares, 40 at most.",
            )
        ],
        [figure_table("Summary", summary), table],
    )


def tune_page(
    path: str | Path,
    config: ExperimentConfig,
    tuning: Tuning,
    epsilon: float,
    constants: dict[str, float],
) -> Path:
    """Write the page of `perfeds2 tune-a`."""
    intro = [
        f"With {tuning.best.participants} of {config.ues} UEs the mean squared gradient norm is "
        f"expected to fall to {epsilon:.4g} soonest, each A at the step its own bound allows.",
        "The bound's steps are far below those that work best in practice: read the curve as a "
        "comparison of A, not as a forecast of seconds.",
    ]
    columns = ["participants", "staleness", "step", "rounds", "expected_rounds", "round_s",
               "seconds"]  # fmt: skip
    table = {
        "title": "Candidates",
        "columns": ["A", "staleness", "step", "guaranteed rounds", "expected rounds", "round s",
                    "expected seconds"],
        "rows": [[text(getattr(c, name)) for name in columns] for c in tuning.candidates],
    }  # fmt: skip
    return render(
        path,
        "How many to wait for",
        config.seed,
        intro,
        [
            (
                "Seconds against the number of participants",
                figures_theory.tuning_curve(tuning),
                "Few participants: short rounds, small steps. Many: the slow UEs set the time.",
            )
        ],
        [figure_table("Estimated constants", constants), table],
    )


def bound_page(path: str | Path, config: ExperimentConfig, found: RunBound, image: str) -> Path:
    """Write the page of `perfeds2 bound`; `image` is the file with the curves."""
    last = found.bounds[-1]
    intro = [
        f"After {int(found.rounds[-1])} rounds the mean squared gradient norm is "
        f"{found.measured[-1]:.4g} and the bound is {last.total:.4g}; its largest term is "
        f"{last.binding}. The constants are local estimates along the run, so this is a report "
        "and not a certificate.",
    ]
    return render(
        path,
        "Bound and measurement",
        config.seed,
        intro,
        [
            (
                "Bound, term by term, and what was measured",
                image,
                "Heterogeneity is the floor under arbitrary participation: no number of rounds "
                "takes the bound below it.",
            )
        ],
        [figure_table("After the last round", found.to_json())],
    )
