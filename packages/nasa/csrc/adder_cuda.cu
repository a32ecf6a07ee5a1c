// Adder convolution on CUDA: forward and input gradient as implicit matrix products. A block makes a
// tile of M rows (filters or channels) by N columns (pixels); the next stage of the reduction is read
// into registers while the present one is worked on. Any stride, padding, dilation and groups. A plain
// C interface: no torch headers; tensors cross as addresses, float32 and contiguous.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kDepth = 8;      // reduction steps that one stage holds
constexpr int kThreads = 256;  // of every tile and of the depthwise kernels

struct Shape {
    int64_t batch, channels, height, width, filters, kernel_h, kernel_w, groups, out_h, out_w;
    int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// The sizes inside one image, 32 bits wide: integer division of 64 bits is slow on a GPU.
struct Sizes {
    int channels, height, width, filters, kernel_w, taps, out_h, out_w;
    int stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;

    explicit Sizes(const Shape& z)
        : channels(int(z.channels / z.groups)), height(int(z.height)), width(int(z.width)),
          filters(int(z.filters / z.groups)), kernel_w(int(z.kernel_w)), taps(int(z.kernel_h * z.kernel_w)),
          out_h(int(z.out_h)), out_w(int(z.out_w)), stride_h(int(z.stride_h)), stride_w(int(z.stride_w)),
          pad_h(int(z.pad_h)), pad_w(int(z.pad_w)), dilation_h(int(z.dilation_h)), dilation_w(int(z.dilation_w)) {}
};

// Results of one thread: kRows x kColumns, in pieces of four that lie side by side for 16-byte reads.
template <int M, int N, int R, int C>
struct Tile {
    static constexpr int kM = M, kN = N, kRows = R, kColumns = C;
    static constexpr int kPitch = M + 4;  // keeps writes down a column off one bank
    static_assert(M / R * (N / C) == kThreads && R % 4 == 0 && C % 4 == 0);
    __device__ static int row() { return int(threadIdx.x) / (N / C); }
    __device__ static int column() { return int(threadIdx.x) % (N / C); }
    __device__ static int row_of(int i) { return i / 4 * (M / (R / 4)) + row() * 4 + i % 4; }
    __device__ static int column_of(int j) { return j / 4 * (N / (C / 4)) + column() * 4 + j % 4; }
};

template <int Count>
__device__ inline void read(float (&out)[Count], const float* line, int first, int span) {
#pragma unroll
    for (int i = 0; i < Count; i += 4)
        *reinterpret_cast<float4*>(out + i) = *reinterpret_cast<const float4*>(line + i / 4 * (span / (Count / 4)) + first * 4);
}

// y[f][p] = -sum over k of |x[k][p] - w[f][k]|
template <typename T, bool kPointwise>
__global__ void __launch_bounds__(kThreads) forward_kernel(Shape z, Sizes s, const float* x, const float* w, float* y) {
    __shared__ __align__(16) float inputs[kDepth][T::kN];
    __shared__ __align__(16) float weights[kDepth][T::kPitch];
    constexpr int kLoads = kDepth * T::kN / kThreads, kStep = kThreads / T::kN;
    constexpr int kWeightLoads = (kDepth * T::kM + kThreads - 1) / kThreads;
    const int depth = s.channels * s.taps, area = s.out_h * s.out_w, plane = s.height * s.width;
    const int64_t pixels = z.batch * area, first_p = int64_t(blockIdx.x) * T::kN, group = blockIdx.z;
    const int first_f = int(blockIdx.y) * T::kM;

    // Every thread stages one pixel: its place in the image does not change with k.
    const int lane = int(threadIdx.x) % T::kN, step = int(threadIdx.x) / T::kN;
    const int64_t p = first_p + lane;
    const bool inside = p < pixels;
    const int at = inside ? int(p % area) : 0;
    const int top = at / s.out_w * s.stride_h - s.pad_h, left = at % s.out_w * s.stride_w - s.pad_w;
    const float* image = x + ((inside ? p / area : 0) * z.groups + group) * s.channels * int64_t(plane);
    const float* kernels = w + (group * s.filters + first_f) * int64_t(depth);

    float staged[kLoads], staged_weights[kWeightLoads];
    auto fetch = [&](int start) {
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            const int k = start + step + i * kStep;
            const int c = kPointwise ? k : k / s.taps, t = kPointwise ? 0 : k - c * s.taps;
            const int tap_row = kPointwise ? 0 : t / s.kernel_w;
            const int h = top + tap_row * s.dilation_h, v = left + (t - tap_row * s.kernel_w) * s.dilation_w;
            const bool hit = inside && k < depth && unsigned(h) < unsigned(s.height) && unsigned(v) < unsigned(s.width);
            staged[i] = hit ? image[int64_t(c) * plane + h * s.width + v] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < kWeightLoads; ++i) {
            const int index = int(threadIdx.x) + i * kThreads, k = start + index % kDepth, f = index / kDepth;
            staged_weights[i] = f < T::kM && k < depth && first_f + f < s.filters ? kernels[int64_t(f) * depth + k] : 0.0f;
        }
    };

    float acc[T::kRows][T::kColumns] = {};
    fetch(0);
    for (int start = 0; start < depth; start += kDepth) {
#pragma unroll
        for (int i = 0; i < kLoads; ++i) inputs[step + i * kStep][lane] = staged[i];
#pragma unroll
        for (int i = 0; i < kWeightLoads; ++i) {
            const int index = int(threadIdx.x) + i * kThreads;
            if (index < kDepth * T::kM) weights[index % kDepth][index / kDepth] = staged_weights[i];
        }
        __syncthreads();
        if (start + kDepth < depth) fetch(start + kDepth);
        // Past the end both are zero, and so is their distance.
#pragma unroll
        for (int k = 0; k < kDepth; ++k) {
            float a[T::kColumns], b[T::kRows];
            read(a, inputs[k], T::column(), T::kN);
            read(b, weights[k], T::row(), T::kM);
#pragma unroll
            for (int i = 0; i < T::kRows; ++i)
#pragma unroll
                for (int j = 0; j < T::kColumns; ++j) acc[i][j] -= fabsf(a[j] - b[i]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < T::kColumns; ++j) {
        const int64_t q = first_p + T::column_of(j);
        if (q >= pixels) continue;
        float* out = y + (q / area * z.filters + group * s.filters + first_f) * area + q % area;
#pragma unroll
        for (int i = 0; i < T::kRows; ++i)
            if (first_f + T::row_of(i) < s.filters) out[int64_t(T::row_of(i)) * area] = acc[i][j];
    }
}

// gx[c][q] = sum over f and taps of clamp(w[f][c][t] - x[c][q], -1, 1) * gy[f][place of q under t].
// clamp(d, -1, 1) = 2 saturate(d / 2 + 1 / 2) - 1, and saturating is free in an addition: two instructions
// a term instead of four; the sum of gy that is taken off is kept beside.
template <typename T>
__global__ void __launch_bounds__(kThreads) gradient_kernel(Shape z, Sizes s, const float* x, const float* w, const float* gy, float* gx) {
    __shared__ __align__(16) float gradients[kDepth][T::kN];
    __shared__ __align__(16) float weights[kDepth][T::kPitch];
    constexpr int kLoads = kDepth * T::kN / kThreads, kStep = kThreads / T::kN;
    constexpr int kWeightLoads = (kDepth * T::kM + kThreads - 1) / kThreads;
    const int area = s.height * s.width, out_area = s.out_h * s.out_w;
    const int64_t pixels = z.batch * area, first_q = int64_t(blockIdx.x) * T::kN, group = blockIdx.z;
    const int first_c = int(blockIdx.y) * T::kM;
    const int lane = int(threadIdx.x) % T::kN, step = int(threadIdx.x) / T::kN;
    const int64_t q = first_q + lane;
    const bool inside = q < pixels;
    const int at = inside ? int(q % area) : 0;
    const int bottom = at / s.width + s.pad_h, right = at % s.width + s.pad_w;
    const float* image = gy + ((inside ? q / area : 0) * z.groups + group) * s.filters * int64_t(out_area);
    const float* kernels = w + group * s.filters * int64_t(s.channels) * s.taps;

    float shifted[T::kRows][T::kColumns] = {}, acc[T::kRows][T::kColumns] = {}, total[T::kColumns] = {};
#pragma unroll
    for (int j = 0; j < T::kColumns; ++j) {
        const int64_t place = first_q + T::column_of(j);
        if (place >= pixels) continue;
        const float* in = x + (place / area * z.channels + group * s.channels + first_c) * area + place % area;
#pragma unroll
        for (int i = 0; i < T::kRows; ++i)
            if (first_c + T::row_of(i) < s.channels) shifted[i][j] = 0.5f - 0.5f * in[int64_t(T::row_of(i)) * area];
    }
    float staged[kLoads], staged_weights[kWeightLoads];
    const int stages = (s.filters + kDepth - 1) / kDepth, end = s.taps * stages;
    auto fetch = [&](int stage) {
        const int t = stage / stages, start = (stage - t * stages) * kDepth, tap_row = t / s.kernel_w;
        const int i = bottom - tap_row * s.dilation_h, k = right - (t - tap_row * s.kernel_w) * s.dilation_w;
        // The stride must divide both before the bounds are looked at.
        const int oh = i / s.stride_h, ow = k / s.stride_w;
        const bool hit = inside && i >= 0 && k >= 0 && oh * s.stride_h == i && ow * s.stride_w == k && oh < s.out_h && ow < s.out_w;
        const int place = hit ? oh * s.out_w + ow : 0;
#pragma unroll
        for (int n = 0; n < kLoads; ++n) {
            const int f = start + step + n * kStep;
            staged[n] = hit && f < s.filters ? image[int64_t(f) * out_area + place] : 0.0f;
        }
#pragma unroll
        for (int n = 0; n < kWeightLoads; ++n) {
            const int index = int(threadIdx.x) + n * kThreads, f = start + index / T::kM, c = first_c + index % T::kM;
            const bool valid = index < kDepth * T::kM && f < s.filters && c < s.channels;
            staged_weights[n] = valid ? 0.5f * kernels[(int64_t(f) * s.channels + c) * s.taps + t] : 0.0f;
        }
    };
    fetch(0);
    for (int stage = 0; stage < end; ++stage) {
#pragma unroll
        for (int n = 0; n < kLoads; ++n) gradients[step + n * kStep][lane] = staged[n];
#pragma unroll
        for (int n = 0; n < kWeightLoads; ++n) {
            const int index = int(threadIdx.x) + n * kThreads;
            if (index < kDepth * T::kM) weights[index / T::kM][index % T::kM] = staged_weights[n];
        }
        __syncthreads();
        if (stage + 1 < end) fetch(stage + 1);
#pragma unroll
        for (int f = 0; f < kDepth; ++f) {
            float g[T::kColumns], b[T::kRows];
            read(g, gradients[f], T::column(), T::kN);
            read(b, weights[f], T::row(), T::kM);
#pragma unroll
            for (int j = 0; j < T::kColumns; ++j) total[j] += g[j];
#pragma unroll
            for (int i = 0; i < T::kRows; ++i)
#pragma unroll
                for (int j = 0; j < T::kColumns; ++j) acc[i][j] = fmaf(__saturatef(b[i] + shifted[i][j]), g[j], acc[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < T::kColumns; ++j) {
        const int64_t place = first_q + T::column_of(j);
        if (place >= pixels) continue;
        float* out = gx + (place / area * z.channels + group * s.channels + first_c) * area + place % area;
#pragma unroll
        for (int i = 0; i < T::kRows; ++i)
            if (first_c + T::row_of(i) < s.channels) out[int64_t(T::row_of(i)) * area] = 2.0f * acc[i][j] - total[j];
    }
}

// One channel a group: no reduction over channels to tile, one thread a result.
__global__ void __launch_bounds__(kThreads) depthwise_forward(Shape z, Sizes s, const float* x, const float* w, float* y) {
    const int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    const int area = s.out_h * s.out_w;
    if (index >= z.batch * z.filters * area) return;
    const int at = int(index % area), filter = int(index / area % z.filters);
    const int top = at / s.out_w * s.stride_h - s.pad_h, left = at % s.out_w * s.stride_w - s.pad_w;
    const float* image = x + (index / area / z.filters * z.groups + filter / s.filters) * int64_t(s.height) * s.width;
    float acc = 0.0f;
    for (int t = 0; t < s.taps; ++t) {
        const int h = top + t / s.kernel_w * s.dilation_h, v = left + t % s.kernel_w * s.dilation_w;
        const bool hit = unsigned(h) < unsigned(s.height) && unsigned(v) < unsigned(s.width);
        acc -= fabsf((hit ? image[h * s.width + v] : 0.0f) - w[int64_t(filter) * s.taps + t]);
    }
    y[index] = acc;
}

__global__ void __launch_bounds__(kThreads) depthwise_gradient(Shape z, Sizes s, const float* x, const float* w, const float* gy, float* gx) {
    const int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    const int area = s.height * s.width, out_area = s.out_h * s.out_w;
    if (index >= z.batch * z.channels * area) return;
    const int at = int(index % area), group = int(index / area % z.channels);
    const int64_t first = (index / area / z.channels * z.groups + group) * s.filters;
    const float value = x[index];
    float acc = 0.0f;
    for (int t = 0; t < s.taps; ++t) {
        const int i = at / s.width + s.pad_h - t / s.kernel_w * s.dilation_h;
        const int k = at % s.width + s.pad_w - t % s.kernel_w * s.dilation_w;
        const int oh = i / s.stride_h, ow = k / s.stride_w;
        if (i < 0 || k < 0 || oh * s.stride_h != i || ow * s.stride_w != k || oh >= s.out_h || ow >= s.out_w) continue;
        for (int f = 0; f < s.filters; ++f) {
            const float difference = w[(int64_t(group) * s.filters + f) * s.taps + t] - value;
            acc = fmaf(fminf(fmaxf(difference, -1.0f), 1.0f), gy[(first + f) * out_area + oh * s.out_w + ow], acc);
        }
    }
    gx[index] = acc;
}

template <typename T>
dim3 grid(int64_t columns, int64_t rows, int64_t groups) {
    return dim3(unsigned((columns + T::kN - 1) / T::kN), unsigned((rows + T::kM - 1) / T::kM), unsigned(groups));
}

// Calls `run` with the tile whose rows fit the count: the rest of a tile is wasted work.
template <typename Run>
void with_tile(int64_t rows, Run run) {
    if (rows > 64) run(Tile<128, 128, 8, 8>());
    else if (rows > 32) run(Tile<64, 128, 4, 8>());
    else if (rows > 16) run(Tile<32, 128, 4, 4>());
    else run(Tile<16, 256, 4, 4>());
}

}  // namespace

// `numbers` holds the sixteen sizes in the order of Shape. Both return cudaGetLastError().
extern "C" int nasa_cuda_adder_forward(const int64_t* numbers, const void* x, const void* w, void* y, void* stream) {
    const Shape z = *reinterpret_cast<const Shape*>(numbers);
    const Sizes s(z);
    const auto queue = static_cast<cudaStream_t>(stream);
    const auto *in = static_cast<const float*>(x), *kernels = static_cast<const float*>(w);
    auto* out = static_cast<float*>(y);
    const int64_t pixels = z.batch * z.out_h * z.out_w;
    if (s.channels == 1) {
        depthwise_forward<<<unsigned((pixels * z.filters + kThreads - 1) / kThreads), kThreads, 0, queue>>>(z, s, in, kernels, out);
        return static_cast<int>(cudaGetLastError());
    }
    with_tile(s.filters, [&](auto tile) {
        using T = decltype(tile);
        if (s.taps == 1) forward_kernel<T, true><<<grid<T>(pixels, s.filters, z.groups), kThreads, 0, queue>>>(z, s, in, kernels, out);
        else forward_kernel<T, false><<<grid<T>(pixels, s.filters, z.groups), kThreads, 0, queue>>>(z, s, in, kernels, out);
    });
    return static_cast<int>(cudaGetLastError());
}

extern "C" int nasa_cuda_adder_grad_input(const int64_t* numbers, const void* x, const void* w, const void* gy, void* gx, void* stream) {
    const Shape z = *reinterpret_cast<const Shape*>(numbers);
    const Sizes s(z);
    const auto queue = static_cast<cudaStream_t>(stream);
    const auto *in = static_cast<const float*>(x), *kernels = static_cast<const float*>(w), *grad = static_cast<const float*>(gy);
    auto* out = static_cast<float*>(gx);
    const int64_t pixels = z.batch * z.height * z.width;
    if (s.channels == 1) {
        depthwise_gradient<<<unsigned((pixels * z.channels + kThreads - 1) / kThreads), kThreads, 0, queue>>>(z, s, in, kernels, grad, out);
        return static_cast<int>(cudaGetLastError());
    }
    // 64 rows at most: a thread keeps its inputs beside its results, and 8 x 8 of each leave room for one block a processor
    with_tile(s.channels < 64 ? s.channels : 64, [&](auto tile) {
        using T = decltype(tile);
        gradient_kernel<T><<<grid<T>(pixels, s.channels, z.groups), kThreads, 0, queue>>>(z, s, in, kernels, grad, out);
    });
    return static_cast<int>(cudaGetLastError());
}
