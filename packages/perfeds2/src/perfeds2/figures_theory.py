"""Figures of the bound and of the choice of participants."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .figures import COLOURS, figure
from .tuning import Tuning


def bound_against_measurement(
    rounds: Float[np.ndarray, " points"],
    measured: Float[np.ndarray, " points"],
    terms: dict[str, Float[np.ndarray, " points"]],
) -> Figure:
    """Terms of the bound and the measured mean squared gradient norm."""
    fig, ax = figure(8.0, 4.0)
    total = np.sum(list(terms.values()), axis=0)
    ax.plot(rounds, total, color="black", lw=1.8, label="bound")
    for colour, (name, values) in zip(COLOURS[2:], terms.items()):
        ax.plot(rounds, values, color=colour, lw=1, ls="--", label=name)
    ax.plot(rounds, measured, color=COLOURS[1], lw=1.8, label="measured")
    ax.set_yscale("log")
    ax.set_xscale("log")
    ax.set_xlabel("rounds")
    ax.set_ylabel("squared gradient norm")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def tuning_curve(tuning: Tuning) -> Figure:
    """Draw expected and guaranteed seconds of every number of participants."""
    fig, ax = figure(7.5, 4.0)
    counts = [c.participants for c in tuning.candidates]
    for values, label, style in (
        ([c.guaranteed_s for c in tuning.candidates], "guaranteed by the bound", "--"),
        ([c.seconds for c in tuning.candidates], "expected", "-"),
    ):
        ax.plot(counts, values, style, marker="o", ms=4, color=COLOURS[0], label=label, lw=1.5)
    best = tuning.best
    ax.plot([best.participants], [best.seconds], "o", ms=10, color=COLOURS[1], label="chosen")
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("participants A")
    ax.set_ylabel("simulated seconds")
    ax.legend(loc="best")
    return fig
