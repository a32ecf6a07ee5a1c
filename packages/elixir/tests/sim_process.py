"""A process that has the strict device, for tests of it.

The device must be there before a process runs its first backward pass. The body of a test marked
``on_device`` is sent to a process of its own, one for the whole session.
"""

import gc
import importlib
import inspect
import multiprocessing
import os
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from elixir.testing import sim

# the package may be installed from a wheel, which has no sources
os.environ.setdefault(sim.SOURCE, str(Path(__file__).parent.parent / "csrc" / "sim"))
needs_compiler = pytest.mark.skipif(sim.why_not() is not None, reason=str(sim.why_not()))


def start():
    """Load the device into this process."""
    torch.set_num_threads(1)
    sim.load()


@contextmanager
def process():
    """Yield a function that runs a test's body in a process with the device."""
    sim.build()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=start) as pool:
        yield lambda *what: pool.submit(_run, *what).result()


def _run(module, name, arguments):
    try:
        getattr(importlib.import_module(module), name).body(**arguments)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # the next test finds an empty device
        raise


def on_device(body):
    """Run a test's body in the device's process."""

    def test(strict_device, **arguments):
        strict_device(body.__module__, body.__name__, arguments)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = inspect.signature(body).parameters.values()
    test.__signature__ = inspect.Signature([inspect.Parameter("strict_device", kind), *parameters])
    test.__name__, test.__doc__, test.body = body.__name__, body.__doc__, body
    return needs_compiler(test)


def everything_freed():
    """Return whether the device's memory comes back; autograd's thread lets go a little later."""
    gc.collect()
    for _ in range(5):
        if sim.live_bytes() == 0:
            return True
        time.sleep(0.05)
        gc.collect()
    return False
