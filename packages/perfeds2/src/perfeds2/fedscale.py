"""Device traces of FedScale, turned once into a CSV trace of this package.

FedScale's capacity trace is a pickle of one dictionary, client id -> ``{"computation": ms of
inference per sample, "communication": kbit/s}``. A pickle can run code when it is read; this reader
refuses every object that is not a plain number, string or container.
"""

from __future__ import annotations

import csv
import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from .errors import InputError, require
from .files import write_text


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds a {module}.{name}, and only plain numbers are read")


def read_capacity(
    path: str | Path, ues: int | None = None
) -> tuple[Float[np.ndarray, " ues"], Float[np.ndarray, " ues"]]:
    """Inference time per sample and link rate of each client, in the order of their ids.

    Parameters
    ----------
    path : path
        FedScale's ``client_device_capacity``.
    ues : int, optional
        Number of clients to take, the first ones.

    Returns
    -------
    inference_s, rate_bit_per_s : float arrays of shape (ues,)

    Raises
    ------
    InputError
        When the file is no such pickle, or a value is not finite and positive.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            table = _PlainUnpickler(file).load()
    except OSError as error:
        raise InputError(f"trace = {str(path)!r}: allowed is a readable file; {error}") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        text = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"trace = {str(path)!r}: allowed is FedScale's client_device_capacity; {text}"
        ) from None
    if not isinstance(table, dict) or not table:
        raise InputError(f"trace = {str(path)!r}: allowed is a dictionary of clients")
    keys = sorted(table, key=lambda key: (str(type(key)), key))
    if ues is not None:
        require(1 <= ues <= len(keys), "ues", ues, f"1 to {len(keys)}, the clients of the trace")
        keys = keys[:ues]
    found = np.empty((2, len(keys)))
    for i, key in enumerate(keys):
        for row, name in enumerate(("computation", "communication")):
            entry = table[key]
            value = entry.get(name) if isinstance(entry, dict) else None
            fine = isinstance(value, int | float) and math.isfinite(value) and value > 0
            if not fine:
                raise InputError(
                    f"{path.name}, client {key}, {name} = {value!r}: allowed is a finite positive "
                    "number"
                )
            found[row, i] = value
    return found[0] * 1e-3, found[1] * 1e3


def import_capacity(
    path: str | Path,
    out: str | Path,
    *,
    samples: int,
    link_hz: float,
    ues: int | None = None,
    augmentation: float = 3.0,
) -> int:
    """Write a CSV trace (``system.trace``) from FedScale's capacity trace.

    A client computes ``augmentation * samples * inference time`` (FedScale counts the backward
    pass as two forward passes). Its rate in the trace is what a link of `link_hz` carries, so the
    SNR density s solves ``link_hz log2(1 + s / link_hz) = rate``.

    Parameters
    ----------
    path, out : path
        Pickle to read, CSV file to write.
    samples : int
        Samples of one update.
    link_hz : float
        Bandwidth at which the rates of the trace were measured, in Hz.
    ues : int, optional
        Clients to take.
    augmentation : float
        Forward passes that one training step costs.

    Returns
    -------
    int
        Number of rows written.

    Raises
    ------
    InputError
        For an unusable file, or a rate that no finite SNR reaches over `link_hz`.
    """
    require(samples >= 1, "samples", samples, "at least 1")
    require(math.isfinite(link_hz) and link_hz > 0, "link_hz", link_hz, "finite positive Hz")
    require(
        math.isfinite(augmentation) and augmentation > 0,
        "augmentation",
        augmentation,
        "finite and positive",
    )
    inference_s, rate = read_capacity(path, ues)
    compute_s = augmentation * samples * inference_s
    with np.errstate(over="ignore"):
        snr = link_hz * np.expm1(rate / link_hz * math.log(2.0))
    wrong = np.flatnonzero(~np.isfinite(snr))
    if wrong.size:
        raise InputError(
            f"link_hz = {link_hz}: allowed is a band that carries {rate[wrong[0]]:.3g} bit/s at a "
            "finite signal-to-noise ratio; name a wider one"
        )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["ue", "compute_s", "snr_density_hz"])
    writer.writerows(zip(range(len(rate)), compute_s.tolist(), snr.tolist()))
    write_text(Path(out), text.getvalue())
    return len(rate)
