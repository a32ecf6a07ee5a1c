"""The process that puts a hold back when its owner dies; started by `migperf.restore`.

It waits for the end of its standard input, which the owner keeps open, and for the owner's death.
Only the standard library is imported until there is something to do, so that waiting costs nothing.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from pathlib import Path

ATTEMPTS_SECONDS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6)


def wait_for_death(owner: int) -> None:
    """Return when `owner` has died or has closed the pipe."""
    watched = [sys.stdin.fileno()]
    if hasattr(os, "pidfd_open"):
        try:
            watched.append(os.pidfd_open(owner))
        except ProcessLookupError:
            return
    select.select(watched, [], [])


def main(path: Path, owner: int) -> int:
    """Wait, then put the hold back unless its owner has done so."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    wait_for_death(owner)
    if not path.exists():
        return 0
    from migperf.errors import MigperfError
    from migperf.restore import note_failure, restore_hold

    for wait in ATTEMPTS_SECONDS:
        # Tenants end with their parent, but not in the same instant.
        time.sleep(wait)
        try:
            restore_hold(path)
        except (MigperfError, OSError) as error:
            note_failure(path, str(error))
        else:
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
