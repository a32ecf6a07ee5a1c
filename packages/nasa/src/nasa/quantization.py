"""Integer networks: 8-bit convolution, 6-bit shift and adder layers (section 5.1 of the paper)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from nasa._files import write_with
from nasa.arch import Architecture
from nasa.functional import conv2d_int8, sad_conv2d
from nasa.network import HybridNet
from nasa.nn import AdderConv2d, ShiftConv2d

WINDOW = 7  # exponents that one int8 plane of powers of two holds: 2**0 to 2**6


@dataclass(frozen=True)
class Bits:
    """Word widths: convolution weights and activations, and those of shift and adder layers."""

    conv: int = 8
    shift: int = 6
    adder: int = 6

    def __post_init__(self) -> None:
        for name in ("conv", "shift", "adder"):
            if not 2 <= getattr(self, name) <= 8:
                raise ValueError(f"{name}={getattr(self, name)}: allowed are 2 to 8 bits")


def quantize_symmetric(x: Float[Tensor, ...], scale: float, bits: int) -> Tensor:
    """Return round(x / scale), clamped to the signed range of ``bits``, as int8."""
    top = 2 ** (bits - 1) - 1
    return torch.clamp(torch.round(x / scale), -top, top).to(torch.int8)


class QuantizedConv2d(nn.Module):
    """A layer with integer weights that runs in the integer kernels.

    ``conv``: int8 products. ``adder``: one scale for input and weight, without which |x - w| over
    integers means nothing. ``shift``: the powers of two are split into planes of seven exponents,
    each an int8 convolution; their sum is exact.
    """

    weight: Tensor
    exponents: Tensor
    bias: Tensor | None

    def __init__(
        self,
        kind: str,
        weight: Tensor,
        exponents: Tensor,
        scale: float,
        weight_scale: float,
        bits: int,
        geometry: dict[str, Any],
        bias: Tensor | None,
    ) -> None:
        super().__init__()
        self.kind, self.scale, self.weight_scale, self.bits = kind, scale, weight_scale, bits
        self.geometry = geometry
        # channels last, as the kernels read it: no copy is left for the forward pass
        self.register_buffer("weight", weight.movedim(-3, -1).contiguous().movedim(-1, -3))
        self.register_buffer("exponents", exponents)
        self.register_buffer("bias", bias)

    @classmethod
    @torch.no_grad()
    def of(cls, layer: nn.Module, largest_input: float, bits: Bits) -> QuantizedConv2d:
        """Quantise a layer whose inputs stay within ``largest_input``."""
        assert isinstance(layer, nn.Conv2d | AdderConv2d | ShiftConv2d)
        geometry = {
            "stride": tuple(layer.stride),
            "padding": layer.padding,
            "dilation": tuple(layer.dilation),
            "groups": layer.groups,
        }
        none = torch.zeros(0, dtype=torch.int32)
        if isinstance(layer, AdderConv2d):
            largest = max(largest_input, float(layer.weight.abs().max()), 1e-12)
            scale = largest / (2 ** (bits.adder - 1) - 1)
            weight = quantize_symmetric(layer.weight, scale, bits.adder)
            return cls("adder", weight, none, scale, scale, bits.adder, geometry, None)
        if isinstance(layer, ShiftConv2d):
            planes, exponents = split_powers(layer.quantized_weight())
            scale = max(largest_input, 1e-12) / (2 ** (bits.shift - 1) - 1)
            return cls("shift", planes, exponents, scale, 1.0, bits.shift, geometry, None)
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise ValueError(
                f"padding={layer.padding!r}, padding_mode={layer.padding_mode!r}: only zeros "
                f"with numbers"
            )
        top = 2 ** (bits.conv - 1) - 1
        weight_scale = max(float(layer.weight.abs().max()), 1e-12) / top
        weight = quantize_symmetric(layer.weight, weight_scale, bits.conv)
        scale = max(largest_input, 1e-12) / top
        bias = None if layer.bias is None else layer.bias.detach().clone()
        return cls("conv", weight, none, scale, weight_scale, bits.conv, geometry, bias)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f oh ow"]:
        """Quantise the input, run the integer kernel, scale back."""
        q = quantize_symmetric(x, self.scale, self.bits)
        if self.kind == "adder":
            return sad_conv2d(q, self.weight, **self.geometry).float() * self.scale
        if self.kind == "shift":
            total = torch.zeros((), dtype=torch.float32)
            for plane, exponent in zip(self.weight, self.exponents.tolist(), strict=True):
                part = conv2d_int8(q, plane, **self.geometry).float()
                total = total + part * (2.0**exponent * self.scale)
            return total
        y = conv2d_int8(q, self.weight, **self.geometry).float() * (self.scale * self.weight_scale)
        return y if self.bias is None else y + self.bias.view(1, -1, 1, 1)

    def extra_repr(self) -> str:
        """Describe the layer."""
        return f"{self.kind}, {tuple(self.weight.shape)}, {self.bits} bits"


def split_powers(weight: Float[Tensor, "f c r s"]) -> tuple[Tensor, Tensor]:
    """Split signed powers of two into int8 planes: ``sum_i planes[i] * 2**exponents[i]``, exactly.

    Examples
    --------
    >>> import torch
    >>> planes, exponents = split_powers(torch.tensor([1.0, -0.5, 2.0**-10, 0.0]).view(4, 1, 1, 1))
    >>> exponents.tolist(), planes.flatten(1).tolist()
    ([-6, -13], [[64, -32, 0, 0], [0, 0, 8, 0]])
    """
    exponent = torch.where(
        weight == 0, torch.tensor(-(10**6)), torch.log2(weight.abs()).round().int()
    )
    planes, exponents = [], []
    if not bool((weight != 0).any()):
        zero = torch.zeros_like(weight, dtype=torch.int8)[None]
        return zero, torch.zeros(1, dtype=torch.int32)
    top = int(exponent.max())
    while bool((exponent > -(10**6)).any()):
        low = top - WINDOW + 1
        inside = exponent >= low
        if bool(inside.any()):
            powers = torch.where(inside, weight * 2.0**-low, torch.zeros(()))
            planes.append(powers.to(torch.int8))
            exponents.append(low)
        exponent = torch.where(inside, torch.tensor(-(10**6)), exponent)
        top = low - 1
    return torch.stack(planes), torch.tensor(exponents, dtype=torch.int32)


@torch.no_grad()
def quantize(
    model: HybridNet, calibration: Iterable[Float[Tensor, "n c h w"]], bits: Bits | None = None
) -> HybridNet:
    """Return an integer copy of a network; batch norms and the classifier stay floating point.

    Parameters
    ----------
    model : HybridNet
    calibration : iterable of batches
        The largest magnitude that each layer sees becomes its range.
    bits : Bits
        8 for convolutions, 6 for shift and adder layers, as in the paper.

    Returns
    -------
    HybridNet
    """
    bits = bits or Bits()
    kinds = (nn.Conv2d, AdderConv2d, ShiftConv2d)
    largest: dict[str, float] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            if not all(torch.isfinite(p).all() for p in module.parameters()):
                raise ValueError(f"layer {name!r} has weights that are NaN or infinite")

            def note(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                largest[name] = max(largest.get(name, 0.0), float(inputs[0].abs().max()))

            handles.append(module.register_forward_pre_hook(note))
    training = model.training
    model.eval()
    for batch in calibration:
        model(batch)
    for handle in handles:
        handle.remove()
    model.train(training)
    if not largest:
        raise ValueError("calibration: at least one batch is needed")
    copy = HybridNet(model.architecture)
    copy.load_state_dict(model.state_dict())
    for name, value in largest.items():
        parent, _, last = name.rpartition(".")
        owner = copy.get_submodule(parent)
        setattr(owner, last, QuantizedConv2d.of(copy.get_submodule(name), value, bits))
    return copy.eval()


def pack_bits(values: np.ndarray, bits: int) -> UInt8[np.ndarray, " bytes"]:
    """Pack small unsigned integers, ``bits`` each, without gaps.

    Examples
    --------
    >>> import numpy as np
    >>> pack_bits(np.array([1, 2, 3]), 6).nbytes
    3
    """
    flat = np.asarray(values, dtype=np.uint16).ravel()
    if flat.size and int(flat.max()) >> bits:
        raise ValueError(f"a value of {int(flat.max())} does not fit in {bits} bits")
    table = (flat[:, None] >> np.arange(bits, dtype=np.uint16)) & 1
    return np.packbits(table.astype(np.uint8).ravel())


def unpack_bits(packed: UInt8[np.ndarray, " bytes"], bits: int, count: int) -> np.ndarray:
    """Undo :func:`pack_bits`."""
    table = np.unpackbits(packed, count=count * bits).reshape(count, bits).astype(np.uint16)
    values: np.ndarray = (table << np.arange(bits, dtype=np.uint16)).sum(1)
    return values


def shift_codes(weight: Float[Tensor, ...], bits: int) -> np.ndarray:
    """Return sign and exponent of signed powers of two in ``bits`` bits: sign, then -p.

    Zero takes the code of the smallest negative power, which the layer therefore never uses.
    """
    w = weight.detach().double().numpy()
    top = 2 ** (bits - 1) - 1
    exponent = np.where(w == 0, top, -np.round(np.log2(np.where(w == 0, 1.0, np.abs(w)))))
    if exponent.min(initial=0) < 0 or exponent.max(initial=0) > top:
        raise ValueError(f"exponents outside [-{top}, 0] do not fit in {bits} bits")
    sign = (w < 0) | (w == 0)
    codes: np.ndarray = (sign.astype(np.uint16) << (bits - 1)) | exponent.astype(np.uint16)
    return codes


def shift_weights(codes: np.ndarray, bits: int) -> Float[np.ndarray, ...]:
    """Undo :func:`shift_codes`."""
    top = 2 ** (bits - 1) - 1
    exponent = (codes & top).astype(np.float64)
    sign = np.where(codes >> (bits - 1), -1.0, 1.0)
    weights = sign * 2.0**-exponent
    return np.where((sign < 0) & (exponent == top), 0.0, weights)


def export_packed(model: HybridNet, path: str | Path, bits: Bits | None = None) -> dict[str, int]:
    """Write a network with packed weights: shift layers in ``bits.shift`` bits per weight.

    The file is a safetensors file whose metadata holds the architecture. Convolution and adder
    weights are quantised to int8 words of their bits and packed too; norms stay float32.

    Returns
    -------
    dict
        Bytes of the packed weights, and of the same weights in float32.
    """
    from safetensors.torch import save_file

    bits = bits or Bits()
    tensors: dict[str, Tensor] = {}
    meta: dict[str, Any] = {}
    packed = plain = 0
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | AdderConv2d | ShiftConv2d):
            continue
        if isinstance(module, ShiftConv2d):
            width, weight = max(bits.shift, module.weight_bits), module.quantized_weight()
            words = pack_bits(shift_codes(weight, width), width)
            meta[name] = {"kind": "shift", "bits": width, "shape": list(weight.shape)}
        else:
            weight = module.weight.detach()
            width = bits.adder if isinstance(module, AdderConv2d) else bits.conv
            top = 2 ** (width - 1) - 1
            scale = max(float(weight.abs().max()), 1e-12) / top
            values = quantize_symmetric(weight, scale, width).numpy().astype(np.int16) + top
            words = pack_bits(values, width)
            meta[name] = {
                "kind": "linear",
                "bits": width,
                "shape": list(weight.shape),
                "scale": scale,
            }
        tensors[f"{name}.packed"] = torch.from_numpy(words)
        packed, plain = packed + words.nbytes, plain + 4 * weight.numel()
    skip = tuple(f"{name}." for name in meta)
    for key, value in model.state_dict().items():
        if not key.startswith(skip):
            tensors[key] = value.contiguous()
    header = {
        "architecture": json.dumps(model.architecture.to_json()),
        "layers": json.dumps(meta),
        "format": "nasa-packed-1",
    }
    write_with(path, lambda temporary: save_file(tensors, temporary, header))
    return {"packed_bytes": packed, "float32_bytes": plain}


def load_packed(path: str | Path) -> HybridNet:
    """Read what :func:`export_packed` wrote; the weights are the quantised ones, in float32."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"model={str(path)!r} cannot be read: {error}") from None
    if header.get("format") != "nasa-packed-1":
        raise ValueError(f"model={str(path)!r} is no packed network of this library")
    net = HybridNet(Architecture.from_json(json.loads(header["architecture"])))
    state = {k: v for k, v in tensors.items() if not k.endswith(".packed")}
    for name, layer in json.loads(header["layers"]).items():
        count = int(np.prod(layer["shape"]))
        words = unpack_bits(tensors[f"{name}.packed"].numpy(), layer["bits"], count)
        if layer["kind"] == "shift":
            values = shift_weights(words, layer["bits"])
        else:
            values = (words.astype(np.float64) - (2 ** (layer["bits"] - 1) - 1)) * layer["scale"]
        weight = torch.from_numpy(values.reshape(layer["shape"])).float()
        state[f"{name}.weight"] = weight
    net.load_state_dict(state)
    return net.eval()
