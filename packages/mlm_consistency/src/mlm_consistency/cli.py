"""Command line."""

from __future__ import annotations

import sys
from importlib.metadata import version

import cyclopts

from .commands.measuring import compare, measure, pair, probe, report
from .commands.models import demo, doctor, train_mini, zoo_app
from .commands.scoring import eoc, score
from .errors import InputError, VerdictError

app = cyclopts.App(
    name="mlm-consistency",
    version=version("mlm-consistency"),
    help_format="markdown",
    suppress_keyboard_interrupt=False,
    help="""Is there a joint distribution behind a masked language model, and how far is it away?

    Examples:

    - `mlm-consistency demo --out out/`
    - `mlm-consistency measure mini-bert verses.txt --pairs 200 --out run/`
    - `mlm-consistency pair mini-bert "and the [1] of the [2] came ." --top 8`
    - `mlm-consistency eoc mini-t5 task.jsonl --patterns baseline,offset:1-6,span:3x5x1`
    - `mlm-consistency compare runA runB --fail-if "gamma.median>+5%"`

    MODEL is `mini-bert` or `mini-t5` (they ship with the package), a folder, or a Hugging Face id.

    Exit codes: 0 success, 2 bad input, 3 the computation says no (a gate failed, not converged),
    130 Ctrl-C.
    """,
)
for command in (measure, probe, pair, eoc, score, compare, report, doctor, demo):
    app.command(command)
app.command(train_mini, name="train-mini")
app.command(zoo_app)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: errors become one line and an exit code."""
    _quiet_transformers()
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        _fail(str(error), 2)
    except InputError as error:
        _fail(str(error), 2)
    except VerdictError as error:
        _fail(str(error), 3)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _quiet_transformers() -> None:
    """Keep transformers' progress bars and advice out of a command's output, unless asked for."""
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _fail(text: str, code: int) -> None:
    print(f"mlm-consistency: {' '.join(text.split())}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
