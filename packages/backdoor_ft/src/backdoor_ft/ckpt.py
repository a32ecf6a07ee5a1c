"""Checkpoints without code: safetensors, or torch files with ``weights_only``."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor, nn

from backdoor_ft.errors import InputError
from backdoor_ft.files import write_atomically


def save_model(model: nn.Module, path: Path | str) -> Path:
    """Write a model's state as safetensors; shared tensors are written once for each name."""
    state = {k: v.detach().cpu().clone().contiguous() for k, v in model.state_dict().items()}
    return write_atomically(path, save_bytes(state))


def read_state(path: Path | str) -> dict[str, Tensor]:
    """Read a state from .safetensors, or from a torch file that holds tensors only.

    Raises
    ------
    InputError
        The file is damaged, or it is a pickle that would run code.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_bytes(path.read_bytes())
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint={str(path)!r} holds pickled code or is damaged, and is refused: save"
            " model.state_dict() as .safetensors where the file comes from"
        ) from error
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"checkpoint={str(path)!r} cannot be read as weights") from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"checkpoint={str(path)!r} holds no dictionary of tensors")
    return {name.removeprefix("module."): value for name, value in state.items()}


def load_model(model: nn.Module, path: Path | str) -> nn.Module:
    """Load a checkpoint into a network and return it in evaluation mode.

    Raises
    ------
    InputError
        File and network do not belong together.
    """
    try:
        model.load_state_dict(read_state(path))
    except RuntimeError as error:
        line = " ".join(str(error).split())[:200]
        raise InputError(f"checkpoint={str(path)!r} does not fit the model: {line}") from error
    return model.eval()
