"""The adder's CUDA kernels against cuDNN, cdist and one thread per output; needs a GPU and nvcc.

Build the package with its CUDA kernels first: NASA_CUDA=1 pip install ./packages/nasa
"""

import ctypes
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

import torch
from bench_kernels import cdist
from common import arguments, goal, write
from nasa._native_loader import cuda
from nasa.checks import LAYERS, reference_adder
from nasa.functional import adder_conv2d

BATCH, ROUNDS, RUNS = 256, 5, 10
# What AdderNet's own CUDA code does: a thread makes one output and reads everything from memory.
ONE_THREAD = r"""
extern "C" __global__ void kernel(const float* x, const float* w, float* y, int n, int c, int h,
                                  int v, int f, int r, int oh, int ow, int stride, int pad) {
    long index = blockIdx.x * (long)blockDim.x + threadIdx.x;
    if (index >= (long)n * f * oh * ow) return;
    int column = index % ow, row = index / ow % oh, filter = index / ow / oh % f;
    const float* image = x + index / ow / oh / f * c * h * v;
    float sum = 0;
    for (int i = 0; i < c; ++i)
        for (int a = 0; a < r; ++a)
            for (int b = 0; b < r; ++b) {
                int y_ = row * stride + a - pad, x_ = column * stride + b - pad;
                bool inside = y_ >= 0 && y_ < h && x_ >= 0 && x_ < v;
                float value = inside ? image[(i * h + y_) * v + x_] : 0;
                sum -= fabsf(value - w[((filter * c + i) * r + a) * r + b]);
            }
    y[index] = sum;
}
extern "C" void run(const float* x, const float* w, float* y, const int* z, void* stream) {
    long outputs = (long)z[0] * z[4] * z[6] * z[7];
    kernel<<<(outputs + 255) / 256, 256, 0, (cudaStream_t)stream>>>(
        x, w, y, z[0], z[1], z[2], z[3], z[4], z[5], z[6], z[7], z[8], z[9]);
}
"""


def one_thread_kernel(folder: Path) -> ctypes.CDLL:
    source, library = folder / "one.cu", folder / "one.so"
    source.write_text(ONE_THREAD)
    flags = ["-O3", "-arch=native", "-shared", "-Xcompiler", "-fPIC"]
    subprocess.run(["nvcc", *flags, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def times(*runs) -> list[list[float]]:
    """Return milliseconds of each of the functions, one value a round, alternating."""
    found = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(ROUNDS):
        for run, values in zip(runs, found, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(RUNS):
                run()
            end.record()
            torch.cuda.synchronize()
            values.append(start.elapsed_time(end) / RUNS)
    return found


def ratio(slow: list[float], fast: list[float]) -> tuple[float, float]:
    """Return the median of the rounds' ratios and the largest distance from it."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    middle = statistics.median(ratios)
    return middle, max(abs(r - middle) for r in ratios)


def measure(library: ctypes.CDLL, layer: tuple[int, ...]) -> dict:
    c, f, k, stride, side = layer
    pad, out = k // 2, (side + 2 * (k // 2) - k) // stride + 1
    torch.manual_seed(0)
    x = torch.randn(BATCH, c, side, side, device="cuda")
    w = torch.randn(f, c, k, k, device="cuda")
    gx, gw = x.clone().requires_grad_(), w.clone().requires_grad_()
    grad = torch.randn(BATCH, f, out, out, device="cuda")
    y = torch.empty_like(grad)
    sizes = (ctypes.c_int * 10)(BATCH, c, side, side, f, k, out, out, stride, pad)
    queue = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    addresses = [ctypes.c_void_p(t.data_ptr()) for t in (x, w, y)]

    def step(operator):
        gx.grad = gw.grad = None
        operator(gx, gw).backward(grad)

    def convolve(a, b):
        return torch.nn.functional.conv2d(a, b, None, stride, pad)

    def adder(a, b):
        return adder_conv2d(a, b, stride, pad)

    conv, ours, conv_step, our_step, one = times(
        lambda: convolve(x, w),
        lambda: adder(x, w),
        lambda: step(convolve),
        lambda: step(adder),
        lambda: library.run(*addresses, sizes, queue),
    )
    few = x[:16].clone()
    distance, ours_few = times(lambda: cdist(few, w, stride, pad), lambda: adder(few, w))
    truth = reference_adder(x[:8], w, stride, pad)
    error = float((adder(x, w)[:8].double() - truth).abs().max() / truth.abs().max())
    if not torch.allclose(y[:8].double(), truth, rtol=1e-4, atol=1e-3):
        raise AssertionError("the comparison kernel is wrong")
    row = {"layer": f"{c},{f},{k}x{k}/{stride},{side}"}
    for name, (value, spread) in {
        "conv / adder, forward": ratio(conv, ours),
        "conv / adder, forward and backward": ratio(conv_step, our_step),
        "one thread per output / adder": ratio(one, ours),
        "cdist / adder (batch 16)": ratio(distance, ours_few),
    }.items():
        row |= {name: value, f"{name}, spread": spread}
    return row | {"relative error to float64": error}


def main() -> None:
    options = arguments(__doc__).parse_args()
    if not torch.cuda.is_available() or shutil.which("nvcc") is None or cuda() is None:
        print("bench_cuda: left out, it needs a GPU, nvcc and a build with NASA_CUDA=1")
        return
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    with tempfile.TemporaryDirectory() as folder:
        library = one_thread_kernel(Path(folder))
        rows = [measure(library, layer) for layer in LAYERS]

    def median(name):
        return statistics.median(row[name] for row in rows)

    forward, one = median("conv / adder, forward"), median("one thread per output / adder")
    step, error = (
        median("conv / adder, forward and backward"),
        max(r["relative error to float64"] for r in rows),
    )
    note = f"{torch.cuda.get_device_name()}; batch {BATCH}, float32, TF32 off; median of six layers"
    goals = [
        goal("CUDA adder's speed over cuDNN's float32 convolution, forward", ">= 0.35",
             f"{forward:.2f}", forward >= 0.35, note),
        goal("CUDA adder's speed over cuDNN's, forward and backward", "not stated",
             f"{step:.2f}", None, note),
        goal("one thread per output / CUDA adder, forward", ">= 8", f"{one:.1f}", one >= 8, note),
        goal("CUDA adder's error to float64, relative, largest", "<= 3e-6", f"{error:.1e}",
             error <= 3e-6, note),
    ]  # fmt: skip
    columns = list(rows[0])
    title = f"Speed as a ratio of times (layer: C, F, kernel/stride, side; batch {BATCH})"
    tables = [
        {"title": title, "columns": columns, "rows": [[row[c] for c in columns] for row in rows]}
    ]
    write(options.out, __file__, "CUDA kernels", goals, tables)


if __name__ == "__main__":
    main()
