"""ONNX export with a parity check, and CPU latency."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gptr._denormals import flush_denormals
from gptr._files import write_with
from gptr.gestalt.descriptors import Descriptors
from gptr.model.gptr import GPTR, Features
from gptr.timing import median_ms


class _Exported(nn.Module):
    """Image and descriptors in, logits and boxes out, for one image size.

    Descriptors (Canny, moments) are integer image processing: they stay outside the network and
    come in as (1, N, 15) per level, as `Descriptors.packed` lays them out.
    """

    def __init__(self, model: GPTR, size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.size = model, size
        self.grids = [(-(-size[0] // s), -(-size[1] // s)) for s in model.config.strides]

    def forward(self, image: Tensor, *packed: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.model.backbone(image, None)
        levels = []
        for p, grid, stride in zip(packed, self.grids, self.model.config.strides, strict=True):
            valid = torch.ones(p.shape[:2], dtype=torch.bool)
            levels.append(Descriptors.unpack(p, valid, grid, stride))
        sizes = torch.tensor([self.size], dtype=torch.float32)
        out = self.model._detect(
            Features([m.flatten(2).transpose(1, 2) for m in maps], levels, sizes), None, None
        )
        return out.pred_logits, out.pred_boxes


@dataclass
class ExportResult:
    """File, largest difference to torch, and median times in milliseconds (torch's threads)."""

    path: Path
    logits_error: float
    boxes_error: float
    torch_ms: float
    onnx_ms: float


def session_options() -> Any:
    """Return ONNX Runtime's options to run an exported file with: torch's threads, no denormals.

    The law bias makes weights of far cells denormal; without this option they cost ten times the
    arithmetic (`flush_denormals` is the same in torch).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return options


def _inputs(model: GPTR, image: np.ndarray) -> tuple[Tensor, list[Tensor]]:
    features = model.extract([image])
    batch = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    return batch, [level.packed() for level in features.levels]


def export_onnx(
    model: GPTR, path: str | Path, size: tuple[int, int] = (512, 512), *, repeats: int = 5,
    seed: int = 0, tolerance: float = 1e-4,
) -> ExportResult:  # fmt: skip
    """Export, run with ONNX Runtime, and compare with torch.

    Parameters
    ----------
    size
        Height and width, multiples of 32.
    tolerance
        Largest difference of a box or a score.

    Raises
    ------
    ValueError
        If a package is missing, the size does not fit, or the mode cannot be exported.
    ArithmeticError
        If ONNX Runtime's results differ by more than ``tolerance``; no file is left then.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError("export needs onnx and onnxruntime: pip install 'gptr[onnx]'") from error
    if size[0] % 32 or size[1] % 32 or min(size) < 32:
        raise ValueError(f"size={size}: sides must be positive multiples of 32")
    if model.config.mode == "official":
        raise ValueError("mode='official' cannot be exported: its features come from 224 x 224")
    model.eval()
    rng = np.random.default_rng(seed)
    image = np.full((*size, 3), 255, np.uint8)
    for _ in range(12):
        y, x = rng.integers(0, size[0] - 16), rng.integers(0, size[1] - 16)
        image[y : y + 16, x : x + rng.integers(4, 16)] = rng.integers(0, 255, 3)
    batch, packed = _inputs(model, image)
    exported = _Exported(model, size).eval()
    names = ["image", *(f"descriptors_{s}" for s in model.config.strides)]
    outcome: list[ExportResult] = []

    def write(temporary: Path) -> None:
        with torch.no_grad():
            torch.onnx.export(
                exported, (batch, *packed), str(temporary), input_names=names,
                output_names=["logits", "boxes"], dynamo=False, opset_version=17,
            )  # fmt: skip
        with torch.no_grad(), flush_denormals():  # of this thread, which ONNX Runtime uses too
            # torch first: the threads of a session spin and would slow it
            logits, boxes = exported(batch, *packed)
            torch_ms = median_ms(lambda: exported(batch, *packed), repeats)
            session = onnxruntime.InferenceSession(
                str(temporary), session_options(), providers=["CPUExecutionProvider"]
            )
            taken = {i.name for i in session.get_inputs()}  # the base reads no descriptors
            values = zip(names, (batch, *packed), strict=True)
            feed = {n: t.numpy() for n, t in values if n in taken}
            theirs = session.run(None, feed)
            onnx_ms = median_ms(lambda: session.run(None, feed), repeats)
        scores_error = float((logits.sigmoid() - torch.from_numpy(theirs[0]).sigmoid()).abs().max())
        boxes_error = float((boxes - torch.from_numpy(theirs[1])).abs().max())
        if max(scores_error, boxes_error) > tolerance:
            raise ArithmeticError(
                f"ONNX Runtime differs: scores {scores_error:.1e}, boxes {boxes_error:.1e}"
            )
        outcome.append(ExportResult(Path(path), scores_error, boxes_error, torch_ms, onnx_ms))

    write_with(path, write)
    return outcome[0]
