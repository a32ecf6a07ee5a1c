"""The strict device: a PyTorch backend in C++ with memory of its own and a hard budget in bytes.

``load`` compiles ``csrc/sim`` of a checkout, with a C++20 compiler, against the installed PyTorch
and registers the device ``"sim"``; wheels have no part in it. On the device

* an allocation one byte over the budget raises :class:`torch.OutOfMemoryError`, and live and peak
  bytes are counted by the allocator;
* memory is poisoned with NaN when it is allocated and when it is freed;
* an operator that mixes tensors of the host and of the device raises, as on CUDA;
* host code that reads device memory through a pointer ends the process with one line of reason.

An operator runs the CPU's kernel in place. What the kernel allocates through PyTorch for itself is
counted apart (:func:`workspace_bytes`), and against the budget only with ``charge_workspace=True``:
another device's kernels need other workspace. The device has one stream, on which work is done
when its call returns, and shares the host's random generator.

Examples
--------
>>> from elixir.testing import sim
>>> if sim.why_not() is None:  # doctest: +SKIP
...     sim.load("1MiB")
...     x = torch.zeros(1 << 17, device="sim")
...     sim.live_bytes()
524288
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from elixir.memory.simulated import DEVICES, SimulatedDevice
from elixir.units import parse_bytes

CACHE = "ELIXIR_SIM_CACHE"
"""Environment variable: folder for the compiled device, by default in the user's cache."""
SOURCE = "ELIXIR_SIM_SOURCE"
"""Environment variable: folder of the sources; a wheel has none, a checkout's are found."""
SANITIZERS = ("-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g")
"""Flags in a process that runs under ASan, as the sanitized build of the wheel's module does."""
UNLIMITED = (1 << 64) - 1
_LIVE, _PEAK, _WORKSPACE, _WITH_WORKSPACE, _REFUSED, _BLOCKS = range(6)

_library: ctypes.CDLL | None = None


class SimUnavailableError(RuntimeError):
    """The strict device cannot be built or loaded here; the message is one line."""


def why_not() -> str | None:
    """Return why the device cannot be built here, in one line, or None if it can."""
    if not sys.platform.startswith("linux"):
        return f"the strict device needs Linux, this is {sys.platform}"
    if _compiler() is None:
        return (
            "the strict device needs a C++20 compiler: none of $CXX, c++, g++ and clang++ was found"
        )
    if _source() is None:
        return f"the strict device's sources are not here: set {SOURCE} to csrc/sim of a checkout"
    return None


def build(cache: str | Path | None = None) -> Path:
    """Compile the device, or find it compiled; return the library's path.

    Parameters
    ----------
    cache
        Folder; a library in it is used again while sources, PyTorch and compiler are the same.

    Raises
    ------
    SimUnavailableError
        If there is no compiler, or it fails.
    """
    if reason := why_not():
        raise SimUnavailableError(reason)
    source, compiler = _source(), _compiler()
    assert source is not None
    assert compiler is not None
    folder = Path(cache) if cache is not None else _cache()
    root = Path(torch.__file__).parent
    flags = [
        *("-std=c++20", "-O1", "-fPIC", "-shared"),
        *(SANITIZERS if "libasan" in os.environ.get("LD_PRELOAD", "") else ()),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *("-isystem", str(root / "include")),
        *("-isystem", str(root / "include" / "torch" / "csrc" / "api" / "include")),
    ]
    links = [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{root / 'lib'}"]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    parts = [torch.__version__, version.stdout, *flags, *links]
    parts += [path.read_text() for path in sorted(source.iterdir())]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    target = folder / f"elixir-sim-{key}.so"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=".so", dir=folder)
    except OSError as error:
        raise SimUnavailableError(
            f"the strict device cannot be compiled into {folder}: {error.strerror}; set {CACHE}"
        ) from None
    os.close(handle)
    try:
        done = subprocess.run(
            [compiler, *flags, str(source / "backend.cpp"), "-o", name, *links],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line]
            first = (lines or done.stderr.splitlines() or ["no message"])[0]
            raise SimUnavailableError(f"the strict device does not compile: {first}")
        Path(name).replace(target)
    finally:
        Path(name).unlink(missing_ok=True)
    return target


def load(budget: int | str | None = None, *, charge_workspace: bool = False) -> None:
    """Register the device ``"sim"`` and set its budget; further calls only set the budget.

    Call it before the first backward pass of the process, planning included: PyTorch starts one
    autograd thread per device, once.

    Parameters
    ----------
    budget
        Bytes, or text such as ``"4MiB"``; None for no limit.
    charge_workspace
        Also charge what CPU kernels allocate through PyTorch while an operator runs.

    Raises
    ------
    SimUnavailableError
        If it cannot be built, or autograd's threads or another such backend are there already.
    """
    global _library
    if _library is None:
        _library = _register(build())
    _library.elixir_sim_charge_workspace(int(charge_workspace))
    set_budget(budget)


def loaded() -> bool:
    """Return whether the device is there."""
    return _library is not None


def set_budget(budget: int | str | None) -> None:
    """Change the budget; what is allocated already stays."""
    size = UNLIMITED if budget is None else parse_bytes(budget, "budget")
    _lib().elixir_sim_set_budget(size)


def budget() -> int | None:
    """Return the budget in bytes, or None where there is no limit."""
    size = int(_lib().elixir_sim_budget())
    return None if size == UNLIMITED else size


def live_bytes() -> int:
    """Return the bytes allocated now."""
    return _read(_LIVE)


def peak_bytes() -> int:
    """Return the most bytes that were allocated at once since the last :func:`reset`."""
    return _read(_PEAK)


def workspace_bytes() -> int:
    """Return the most bytes that operators held for themselves, beside tensors, at once."""
    return _read(_WORKSPACE)


def peak_with_workspace_bytes() -> int:
    """Return the most bytes of tensors and workspace together."""
    return _read(_WITH_WORKSPACE)


def refused() -> int:
    """Return how many allocations were refused since the last :func:`reset`."""
    return _read(_REFUSED)


def blocks() -> int:
    """Return how many blocks are allocated now."""
    return _read(_BLOCKS)


def reset() -> None:
    """Start the peaks and the count of refusals again from what is allocated now."""
    _lib().elixir_sim_reset_peaks()


def window(tensor: Tensor) -> Tensor:
    """Return a CPU tensor over a device tensor's memory: what a kernel of the device would see."""
    show: Any = torch.ops.elixir_sim.window
    with torch.no_grad():
        result: Tensor = show(tensor)
    return result


def _lib() -> ctypes.CDLL:
    if _library is None:
        raise SimUnavailableError("the strict device is not loaded: call elixir.testing.sim.load()")
    return _library


def _read(which: int) -> int:
    return int(_lib().elixir_sim_read(which))


def _compiler() -> str | None:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def _source() -> Path | None:
    chosen = os.environ.get(SOURCE)
    place = Path(chosen) if chosen else Path(__file__).parents[3] / "csrc" / "sim"
    return place if (place / "backend.cpp").exists() else None


def _cache() -> Path:
    if chosen := os.environ.get(CACHE):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "elixir"


def _register(path: Path) -> ctypes.CDLL:
    """Load the library and complete the device on Python's side."""
    name = torch._C._get_privateuse1_backend_name()
    if name != "privateuseone":
        raise SimUnavailableError(f"PyTorch already has a backend of this kind, named {name!r}")
    library = ctypes.CDLL(str(path))
    library.elixir_sim_set_budget.argtypes = [ctypes.c_uint64]
    library.elixir_sim_set_budget.restype = None
    library.elixir_sim_budget.restype = ctypes.c_uint64
    library.elixir_sim_read.argtypes = [ctypes.c_int]
    library.elixir_sim_read.restype = ctypes.c_uint64
    library.elixir_sim_reset_peaks.restype = None
    library.elixir_sim_charge_workspace.argtypes = [ctypes.c_int]
    library.elixir_sim_charge_workspace.restype = None
    library.elixir_sim_start.restype = None
    library.elixir_sim_start()
    torch.utils.rename_privateuse1_backend("sim")
    torch._register_device_module("sim", _device_module())
    torch.utils.generate_methods_for_privateuse1_backend()
    # the device's autograd thread drops its last graph a moment after backward() has returned;
    # if the interpreter is gone by then, PyTorch aborts
    atexit.register(time.sleep, 0.1)
    try:
        (torch.ones(1, device="sim", requires_grad=True) * 2).backward()
    except RuntimeError:
        raise SimUnavailableError(
            "the strict device was loaded after autograd had started its threads: call "
            "elixir.testing.sim.load() before the first plan or backward pass of the process"
        ) from None
    DEVICES["sim"] = SimulatedDevice(window, torch.ops.elixir_sim.place)
    return library


def _device_module() -> ModuleType:
    """Return what ``torch.sim`` is: the functions that PyTorch expects of a device's module."""
    module: Any = ModuleType("torch.sim")
    module.is_available = lambda: True
    module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.set_device = lambda device: None
    module.device = lambda device: contextlib.nullcontext()
    module.synchronize = lambda device=None: None
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    # random numbers come from the host's generator
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None
    module.get_rng_state = lambda device=0: torch.random.get_rng_state()
    module.set_rng_state = lambda state, device=0: torch.random.set_rng_state(state)
    return module  # type: ignore[no-any-return]
