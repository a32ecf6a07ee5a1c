"""The command line: ``migperf <subcommand>``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version

import cyclopts
from cyclopts import App

from .commands.control import apply, assert_command, export, recover
from .commands.geometry import enumerate_command, place, profiles
from .commands.measure import demo, doctor, report, slo
from .commands.measure import run as run_study
from .commands.observe import compat, exporter, simulate
from .commands.planning import plan_command
from .commands.simulator import sim_app
from .errors import MigperfError

__all__ = ["app", "main"]

_HELP = "Benchmark, reconfigure and plan partitioned GPUs."
_EXAMPLES = """Examples:
  migperf demo --out DIR
  migperf enumerate a100-80gb --maximal --count
  migperf sim start dgx-a100-80gb --state node.state
  migperf apply --layout "3g.40gb, 2g.20gb" --sim ./node.state --dry-run
  migperf apply -f config.yaml -c all-balanced
  migperf run study.yaml --out runs/
  migperf plan demands.yaml --profiles runs/ --explain

Exit codes: 0 success, 2 bad input, 3 the computation says no, 4 no permission,
5 in use, 6 reset required, 7 the host is too noisy to measure, 8 a workload ran
out of memory, 130 Ctrl-C, 143 SIGTERM.
"""

app = App(
    name="migperf",
    help=_HELP,
    help_epilogue=_EXAMPLES,
    help_format="plaintext",
    version=version("migperf"),
    suppress_keyboard_interrupt=False,
)
app.command(enumerate_command, name="enumerate")
app.command(place)
app.command(profiles)
app.command(apply)
app.command(assert_command, name="assert")
app.command(export)
app.command(recover)
app.command(sim_app)
app.command(plan_command, name="plan")
app.command(run_study, name="run")
app.command(slo)
app.command(compat)
app.command(simulate)
app.command(exporter)
app.command(doctor)
app.command(report)
app.command(demo)


def run(tokens: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        result = app(
            list(tokens), exit_on_error=False, print_error=False, result_action="return_value"
        )
    except cyclopts.CycloptsError as error:
        text = " ".join(str(error).split())
        print(f"migperf: {text} (see migperf --help)", file=sys.stderr)
        return 2
    except MigperfError as error:
        print(f"migperf: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader went away (migperf ... | head): nothing is wrong here.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Terminated as stop:
        print("migperf: terminated", file=sys.stderr)
        return 128 + int(stop.args[0])
    except KeyboardInterrupt:
        print("migperf: interrupted", file=sys.stderr)
        return 130
    return result if isinstance(result, int) else 0


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: everything is put back on the way out, as after Ctrl-C."""


def _terminate(number: int, _: object) -> None:
    raise Terminated(number)


def main() -> None:
    """Entry point of the console script."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays what it is
            signal.signal(number, _terminate)
    sys.exit(run(sys.argv[1:]))
