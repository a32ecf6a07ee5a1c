// Adder convolution on CUDA: forward and input gradient as implicit matrix products, one 64 x 64 tile
// per block, 4 x 4 results per thread. Any stride, padding, dilation and groups. A plain C interface:
// no torch headers; tensors cross as addresses, float32 and contiguous.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kTile = 64;   // rows and columns of a block's tile
constexpr int kDepth = 8;   // reduction steps that one stage holds
constexpr int kThread = 4;  // rows and columns of a thread's results
constexpr int kThreads = (kTile / kThread) * (kTile / kThread);

struct Shape {
    int64_t batch, channels, height, width, filters, kernel_h, kernel_w, groups, out_h, out_w;
    int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

__device__ inline float clamp_one(float a) { return fminf(fmaxf(a, -1.0f), 1.0f); }

// y[f][p] = -sum over k of |x[k][p] - w[f][k]|
__global__ void __launch_bounds__(kThreads) forward_kernel(Shape z, const float* x, const float* w, float* y) {
    __shared__ float inputs[kDepth][kTile];
    __shared__ float weights[kDepth][kTile];
    const int64_t cg = z.channels / z.groups, fg = z.filters / z.groups, group = blockIdx.z;
    const int64_t taps = z.kernel_h * z.kernel_w, depth = cg * taps, area = z.out_h * z.out_w;
    const int64_t pixels = z.batch * area, first_p = int64_t(blockIdx.x) * kTile, first_f = int64_t(blockIdx.y) * kTile;
    const int column = threadIdx.x % (kTile / kThread), row = threadIdx.x / (kTile / kThread);

    // Every thread stages one pixel: its place in the image does not change with k.
    const int lane = threadIdx.x % kTile, step = threadIdx.x / kTile;
    const int64_t p = first_p + lane;
    const bool inside = p < pixels;
    const int64_t n = inside ? p / area : 0, oh = inside ? p % area / z.out_w : 0, ow = inside ? p % z.out_w : 0;
    const float* image = x + (n * z.channels + group * cg) * z.height * z.width;

    float acc[kThread][kThread] = {};
    for (int64_t start = 0; start < depth; start += kDepth) {
        for (int i = step; i < kDepth; i += kThreads / kTile) {
            const int64_t k = start + i;
            float value = 0.0f, weight = 0.0f;
            if (k < depth) {
                const int64_t c = k / taps, t = k % taps;
                const int64_t h = oh * z.stride_h + t / z.kernel_w * z.dilation_h - z.pad_h;
                const int64_t v = ow * z.stride_w + t % z.kernel_w * z.dilation_w - z.pad_w;
                if (inside && h >= 0 && h < z.height && v >= 0 && v < z.width) value = image[(c * z.height + h) * z.width + v];
                if (first_f + lane < fg) weight = w[(group * fg + first_f + lane) * depth + k];
            }
            inputs[i][lane] = value;
            weights[i][lane] = weight;
        }
        __syncthreads();
        // Past the end both are zero, and so is their distance.
#pragma unroll
        for (int i = 0; i < kDepth; ++i) {
            float a[kThread], b[kThread];
#pragma unroll
            for (int j = 0; j < kThread; ++j) {
                a[j] = inputs[i][column * kThread + j];
                b[j] = weights[i][row * kThread + j];
            }
#pragma unroll
            for (int f = 0; f < kThread; ++f)
#pragma unroll
                for (int j = 0; j < kThread; ++j) acc[f][j] -= fabsf(a[j] - b[f]);
        }
        __syncthreads();
    }
    for (int f = 0; f < kThread; ++f)
        for (int j = 0; j < kThread; ++j) {
            const int64_t filter = first_f + row * kThread + f, q = first_p + column * kThread + j;
            if (filter < fg && q < pixels) y[(q / area * z.filters + group * fg + filter) * area + q % area] = acc[f][j];
        }
}

// gx[c][q] = sum over f and taps of clamp(w[f][c][t] - x[c][q], -1, 1) * gy[f][place of q under t]
__global__ void __launch_bounds__(kThreads) gradient_kernel(Shape z, const float* x, const float* w, const float* gy, float* gx) {
    __shared__ float gradients[kDepth][kTile];
    __shared__ float weights[kDepth][kTile];
    const int64_t cg = z.channels / z.groups, fg = z.filters / z.groups, group = blockIdx.z;
    const int64_t taps = z.kernel_h * z.kernel_w, area = z.height * z.width, pixels = z.batch * area;
    const int64_t first_q = int64_t(blockIdx.x) * kTile, first_c = int64_t(blockIdx.y) * kTile;
    const int column = threadIdx.x % (kTile / kThread), row = threadIdx.x / (kTile / kThread);
    const int lane = threadIdx.x % kTile, step = threadIdx.x / kTile;
    const int64_t q = first_q + lane;
    const bool inside = q < pixels;
    const int64_t n = inside ? q / area : 0, h = inside ? q % area / z.width : 0, v = inside ? q % z.width : 0;
    const float* image = gy + (n * z.filters + group * fg) * z.out_h * z.out_w;

    float value[kThread][kThread] = {}, acc[kThread][kThread] = {};
    for (int c = 0; c < kThread; ++c)
        for (int j = 0; j < kThread; ++j) {
            const int64_t channel = first_c + row * kThread + c, at = first_q + column * kThread + j;
            if (channel < cg && at < pixels) value[c][j] = x[(at / area * z.channels + group * cg + channel) * area + at % area];
        }
    for (int64_t t = 0; t < taps; ++t) {
        const int64_t i = h + z.pad_h - t / z.kernel_w * z.dilation_h, k = v + z.pad_w - t % z.kernel_w * z.dilation_w;
        // The stride must divide both before the bounds are looked at.
        const bool hit = inside && i >= 0 && k >= 0 && i % z.stride_h == 0 && k % z.stride_w == 0 &&
                         i / z.stride_h < z.out_h && k / z.stride_w < z.out_w;
        const int64_t place = hit ? i / z.stride_h * z.out_w + k / z.stride_w : 0;
        for (int64_t start = 0; start < fg; start += kDepth) {
            for (int s = step; s < kDepth; s += kThreads / kTile) {
                const int64_t f = start + s;
                gradients[s][lane] = f < fg && hit ? image[f * z.out_h * z.out_w + place] : 0.0f;
                weights[s][lane] = f < fg && first_c + lane < cg ? w[((group * fg + f) * cg + first_c + lane) * taps + t] : 0.0f;
            }
            __syncthreads();
#pragma unroll
            for (int s = 0; s < kDepth; ++s) {
                float g[kThread], b[kThread];
#pragma unroll
                for (int j = 0; j < kThread; ++j) {
                    g[j] = gradients[s][column * kThread + j];
                    b[j] = weights[s][row * kThread + j];
                }
#pragma unroll
                for (int c = 0; c < kThread; ++c)
#pragma unroll
                    for (int j = 0; j < kThread; ++j) acc[c][j] = fmaf(clamp_one(b[c] - value[c][j]), g[j], acc[c][j]);
            }
            __syncthreads();
        }
    }
    for (int c = 0; c < kThread; ++c)
        for (int j = 0; j < kThread; ++j) {
            const int64_t channel = first_c + row * kThread + c, at = first_q + column * kThread + j;
            if (channel < cg && at < pixels) gx[(at / area * z.channels + group * cg + channel) * area + at % area] = acc[c][j];
        }
}

unsigned blocks(int64_t count) { return static_cast<unsigned>((count + kTile - 1) / kTile); }

}  // namespace

// `numbers` holds the sixteen sizes in the order of Shape. Both return cudaGetLastError().
extern "C" int nasa_cuda_adder_forward(const int64_t* numbers, const void* x, const void* w, void* y, void* stream) {
    const Shape z = *reinterpret_cast<const Shape*>(numbers);
    const dim3 grid(blocks(z.batch * z.out_h * z.out_w), blocks(z.filters / z.groups), static_cast<unsigned>(z.groups));
    forward_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        z, static_cast<const float*>(x), static_cast<const float*>(w), static_cast<float*>(y));
    return static_cast<int>(cudaGetLastError());
}

extern "C" int nasa_cuda_adder_grad_input(const int64_t* numbers, const void* x, const void* w, const void* gy, void* gx, void* stream) {
    const Shape z = *reinterpret_cast<const Shape*>(numbers);
    const dim3 grid(blocks(z.batch * z.height * z.width), blocks(z.channels / z.groups), static_cast<unsigned>(z.groups));
    gradient_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        z, static_cast<const float*>(x), static_cast<const float*>(w), static_cast<const float*>(gy), static_cast<float*>(gx));
    return static_cast<int>(cudaGetLastError());
}
