"""Per-cell descriptors of an image: colour moments, borders of the edge map, orientation.

The paper's code reads such features from files that are not published; what its 9 and 4 numbers
are is not stated. Ours: classical colour moments (9), and the cell's place. They are computed from
the image that the network sees, after augmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy import ndimage
from torch import Tensor

from gptr._native_loader import isa, native

LOW, HIGH = 60, 160
"""Canny's thresholds on the L1 norm of the 3 x 3 Sobel gradient."""


@dataclass
class Descriptors:
    """Descriptors of a batch of images on a grid of cells.

    Attributes
    ----------
    colour
        (B, N, 9): mean, standard deviation and cube root of the third central moment of R, G, B.
    tensor
        (B, N, 3): cos 2 theta, sin 2 theta and coherence of the structure tensor.
    links
        (B, N, 2): does the edge map continue across the border to the right, and downwards.
    density
        (B, N): share of edge pixels.
    valid
        (B, N) bool: cells that hold image, not padding.
    grid
        Rows and columns; N is their product.
    stride
        Side of a cell in pixels.
    borders
        (B, N, 4, stride) edge map along top, bottom, left and right, where asked for.
    """

    colour: Float[Tensor, "B N 9"]
    tensor: Float[Tensor, "B N 3"]
    links: Float[Tensor, "B N 2"]
    density: Float[Tensor, "B N"]
    valid: Tensor
    grid: tuple[int, int]
    stride: int
    borders: Tensor | None = None

    @property
    def places(self) -> Float[Tensor, "N 2"]:
        """Cell centres (x, y) in cells."""
        rows, columns = self.grid
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        return torch.stack((x, y), -1).reshape(-1, 2).to(self.colour) + 0.5

    @property
    def boxes(self) -> Float[Tensor, "N 4"]:
        """Normalised cell boxes x0, y0, x1, y1."""
        size = self.places.new_tensor(self.grid[::-1])
        return torch.cat(((self.places - 0.5) / size, (self.places + 0.5) / size), -1)

    def packed(self) -> Float[Tensor, "B N 15"]:
        """Return colour, tensor, links and density side by side."""
        return torch.cat((self.colour, self.tensor, self.links, self.density[..., None]), -1)

    @staticmethod
    def unpack(packed: Tensor, valid: Tensor, grid: tuple[int, int], stride: int) -> Descriptors:
        """Invert `packed`."""
        return Descriptors(
            packed[..., :9], packed[..., 9:12], packed[..., 12:14], packed[..., 14],
            valid, grid, stride,
        )  # fmt: skip

    def to(self, device: torch.device | str) -> Descriptors:
        """Move to a device."""
        borders = None if self.borders is None else self.borders.to(device)
        packed, valid = self.packed().to(device), self.valid.to(device)
        moved = Descriptors.unpack(packed, valid, self.grid, self.stride)
        moved.borders = borders
        return moved


def canny(
    grey: UInt8[np.ndarray, "H W"], low: int = LOW, high: int = HIGH
) -> UInt8[np.ndarray, "H W"]:
    """Return the Canny edge map (0 or 1): 3 x 3 Sobel, L1 norm; equal to OpenCV's, bit for bit.

    References
    ----------
    J. Canny, A Computational Approach to Edge Detection, 1986; OpenCV's ``cv::Canny``.
    """
    return _canny(*_sobel(grey), low, high)


def _sobel(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    g = np.pad(grey.astype(np.int32), 1, mode="edge")
    vertical = g[:-2] + 2 * g[1:-1] + g[2:]
    horizontal = g[:, :-2] + 2 * g[:, 1:-1] + g[:, 2:]
    return vertical[:, 2:] - vertical[:, :-2], horizontal[2:] - horizontal[:-2]


def _canny(gx: np.ndarray, gy: np.ndarray, low: int, high: int) -> np.ndarray:
    m = np.pad(np.abs(gx) + np.abs(gy), 1)
    centre = m[1:-1, 1:-1]

    def near(dy: int, dx: int) -> np.ndarray:
        rows, columns = centre.shape
        return m[1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + columns]

    ax, ay = np.abs(gx).astype(np.int64), np.abs(gy).astype(np.int64) << 15
    tg22 = ax * 13573
    flat, steep = ay < tg22, ay > tg22 + (ax << 16)
    along_x = (centre > near(0, -1)) & (centre >= near(0, 1))
    along_y = (centre > near(-1, 0)) & (centre >= near(1, 0))
    opposite = (gx ^ gy) < 0
    diagonal = np.where(
        opposite,
        (centre > near(-1, 1)) & (centre > near(1, -1)),
        (centre > near(-1, -1)) & (centre > near(1, 1)),
    )
    keep = np.where(flat, along_x, np.where(steep, along_y, diagonal)) & (centre > low)
    parts, count = ndimage.label(keep, structure=np.ones((3, 3)))
    strong = np.zeros(count + 1, bool)
    strong[np.unique(parts[keep & (centre > high)])] = True
    strong[0] = False
    return np.asarray(strong[parts], np.uint8)


def _describe_numpy(
    rgb: np.ndarray, stride: int, low: int, high: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    H, W = rgb.shape[:2]
    rows, columns = H // stride, W // stride
    cells = rgb.reshape(rows, stride, columns, stride, 3).astype(np.int64)
    n = float(stride * stride)
    s1, s2, s3 = ((cells**k).sum((1, 3)).astype(np.float64) for k in (1, 2, 3))
    mean = s1 / n
    variance = np.maximum(s2 / n - mean * mean, 0.0)
    cube = s3 / n - 3.0 * mean * (s2 / n) + 2.0 * mean * mean * mean
    skew = np.where(np.abs(cube) < 1e-6, 0.0, np.cbrt(cube))
    colour = np.concatenate((mean, np.sqrt(variance), skew), -1) / 255.0
    grey = (rgb.astype(np.int32) @ np.array([77, 150, 29], np.int32) + 128) >> 8
    gx, gy = _sobel(grey)

    def total(field: np.ndarray) -> np.ndarray:
        return np.asarray(field.astype(np.int64).reshape(rows, stride, columns, stride).sum((1, 3)))

    difference, twice = total(gx * gx - gy * gy).astype(float), 2.0 * total(gx * gy)
    trace = total(gx * gx + gy * gy).astype(float)
    length = np.sqrt(difference * difference + twice * twice)
    some = np.where(length > 0, length, 1.0)
    tensor = np.stack(
        (
            np.where(length > 0, difference / some, 1.0),
            np.where(length > 0, twice / some, 0.0),
            np.where(trace > 0, length / np.where(trace > 0, trace, 1.0), 0.0),
        ),
        -1,
    )
    edges = _canny(gx, gy, low, high)
    blocks = edges.reshape(rows, stride, columns, stride).transpose(0, 2, 1, 3)
    borders = np.stack(
        (blocks[:, :, 0], blocks[:, :, -1], blocks[:, :, :, 0], blocks[:, :, :, -1]), 2
    )
    return (
        colour.reshape(-1, 9).astype(np.float32),
        tensor.reshape(-1, 3).astype(np.float32),
        borders.reshape(-1, 4, stride),
        edges,
    )


@torch.library.custom_op("gptr::describe", mutates_args=())
def _describe_op(
    rgb: Tensor, stride: int, low: int, high: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images = rgb.detach().cpu().contiguous()
    B, H, W, _ = images.shape
    N = (H // stride) * (W // stride)
    colour = torch.empty(B, N, 9)
    tensor = torch.empty(B, N, 3)
    borders = torch.empty(B, N, 4, stride, dtype=torch.uint8)
    edges = torch.empty(B, H, W, dtype=torch.uint8)
    module = native()
    if module is not None:
        module.describe(
            images.data_ptr(), B, H, W, stride, low, high, colour.data_ptr(), tensor.data_ptr(),
            borders.data_ptr(), edges.data_ptr(), torch.get_num_threads(), isa(),
        )  # fmt: skip
    else:
        for b in range(B):
            fields = _describe_numpy(images[b].numpy(), stride, low, high)
            for out, field in zip((colour, tensor, borders, edges), fields, strict=True):
                out[b] = torch.from_numpy(field)
    return tuple(t.to(rgb.device) for t in (colour, tensor, borders, edges))  # type: ignore[return-value]


@_describe_op.register_fake
def _(rgb: Tensor, stride: int, low: int, high: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, H, W, _ = rgb.shape
    N = (H // stride) * (W // stride)
    return (
        rgb.new_empty(B, N, 9, dtype=torch.float32),
        rgb.new_empty(B, N, 3, dtype=torch.float32),
        rgb.new_empty(B, N, 4, stride),
        rgb.new_empty(B, H, W),
    )


def describe_op(
    rgb: UInt8[Tensor, "B H W 3"], stride: int, low: int = LOW, high: int = HIGH
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return colour (B, N, 9), tensor (B, N, 3), borders (B, N, 4, stride) and edges (B, H, W).

    Raises
    ------
    ValueError
        If the sides are no multiples of the stride, or the image is not uint8 RGB.
    """
    if rgb.dtype != torch.uint8 or rgb.ndim != 4 or rgb.shape[-1] != 3:
        raise ValueError(
            f"rgb has shape {tuple(rgb.shape)} and type {rgb.dtype}: (B, H, W, 3) uint8 is needed"
        )
    if not 2 <= stride <= 128:
        raise ValueError(f"stride={stride}: allowed are 2 to 128")
    if rgb.shape[1] % stride or rgb.shape[2] % stride or 0 in rgb.shape:
        raise ValueError(
            f"rgb is {rgb.shape[1]} x {rgb.shape[2]}: sides must be positive multiples of {stride}"
        )
    if not 0 <= low <= high:
        raise ValueError(f"low={low}, high={high}: 0 <= low <= high is needed")
    out: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.gptr.describe(rgb, stride, low, high)
    return out


def _agree(a: Tensor, b: Tensor) -> Tensor:
    """1 where an edge pixel of one border meets one of the other within a pixel."""
    wide = torch.nn.functional.max_pool1d(b.float().flatten(0, -2)[:, None], 3, 1, 1)[:, 0]
    return (a.float() * wide.view(a.shape)).amax(-1)


def describe(
    images: Sequence[UInt8[np.ndarray, "H W 3"]],
    stride: int,
    size: tuple[int, int] | None = None,
    *,
    low: int = LOW,
    high: int = HIGH,
    keep_borders: bool = False,
) -> Descriptors:
    """Describe images of any sizes on one grid; padding is marked invalid and stays zero.

    Each image is described by itself (its border replicated up to a multiple of the stride), so
    that what stands beside it in the batch never changes its numbers.

    Parameters
    ----------
    images
        RGB images.
    stride
        Side of a cell in pixels.
    size
        Height and width of the padded batch in pixels; the largest image by default.
    keep_borders
        Keep the edge map along the borders (the official mode reads them).
    """
    if not images:
        raise ValueError("images is empty: at least one image is needed")
    shapes = [(-(-i.shape[0] // stride), -(-i.shape[1] // stride)) for i in images]
    if size is None:
        rows, columns = max(s[0] for s in shapes), max(s[1] for s in shapes)
    else:
        rows, columns = -(-size[0] // stride), -(-size[1] // stride)
    B, N = len(images), rows * columns
    fields = torch.zeros(B, rows, columns, 15)
    borders = torch.zeros(B, rows, columns, 4, stride) if keep_borders else None
    valid = torch.zeros(B, rows, columns, dtype=torch.bool)
    groups: dict[tuple[int, int], list[int]] = {}
    for b, image in enumerate(images):
        groups.setdefault((image.shape[0], image.shape[1]), []).append(b)
    for (height, width), members in groups.items():
        r, c = shapes[members[0]]
        if r > rows or c > columns:
            raise ValueError(f"an image of {height} x {width} does not fit the size {size}")
        pad = ((0, r * stride - height), (0, c * stride - width), (0, 0))
        stack = np.stack([np.pad(images[b], pad, mode="edge") for b in members])
        colour, tensor, strips, edges = describe_op(torch.from_numpy(stack), stride, low, high)
        strips = strips.view(len(members), r, c, 4, stride)
        links = torch.zeros(len(members), r, c, 2)
        links[:, :, :-1, 0] = _agree(strips[:, :, :-1, 3], strips[:, :, 1:, 2])
        links[:, :-1, :, 1] = _agree(strips[:, :-1, :, 1], strips[:, 1:, :, 0])
        density = edges.view(len(members), r, stride, c, stride).float().mean((2, 4))
        parts = (
            colour.view(len(members), r, c, 9),
            tensor.view(len(members), r, c, 3),
            links,
            density[..., None],
        )
        at = torch.tensor(members)
        fields[at, :r, :c] = torch.cat(parts, -1)
        valid[at, :r, :c] = True
        if borders is not None:
            borders[at, :r, :c] = strips.float()
    found = Descriptors.unpack(fields.view(B, N, 15), valid.view(B, N), (rows, columns), stride)
    if borders is not None:
        found.borders = borders.view(B, N, 4, stride)
    return found
