// One fused AdamW pass on the GPU, for chunks whose optimizer states live there: gradient in any of
// three types, fp32 master and moments, low-precision parameter out. C interface, no torch headers.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace {

__device__ inline float load(const void* g, int type, int64_t i) {
    if (type == 1) return static_cast<const float*>(g)[i];
    if (type == 2) return __bfloat162float(static_cast<const __nv_bfloat16*>(g)[i]);
    return __half2float(static_cast<const __half*>(g)[i]);
}

__device__ inline void store(void* low, int type, int64_t i, float x) {
    if (type == 1) static_cast<float*>(low)[i] = x;
    if (type == 2) static_cast<__nv_bfloat16*>(low)[i] = __float2bfloat16_rn(x);
    if (type == 3) static_cast<__half*>(low)[i] = __float2half_rn(x);
}

struct Coefficients {
    float scale, beta1, one_minus_beta1, beta2, one_minus_beta2, inverse_sqrt_bias2, epsilon, decay, step_size, l2;
};

// __fmul_rn and __fadd_rn keep the compiler from contracting: the same bits as the CPU kernels.
__global__ void adamw(Coefficients k, float* p, float* m, float* v, const void* g, int g_type, void* low, int low_type, int64_t n) {
    for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n; i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
        const float q = p[i];
        const float x = __fadd_rn(__fmul_rn(load(g, g_type, i), k.scale), __fmul_rn(k.l2, q));
        const float mi = __fadd_rn(__fmul_rn(k.beta1, m[i]), __fmul_rn(k.one_minus_beta1, x));
        const float vi = __fadd_rn(__fmul_rn(k.beta2, v[i]), __fmul_rn(__fmul_rn(k.one_minus_beta2, x), x));
        const float d = __fadd_rn(__fmul_rn(__fsqrt_rn(vi), k.inverse_sqrt_bias2), k.epsilon);
        const float r = __fsub_rn(__fmul_rn(q, k.decay), __fdiv_rn(__fmul_rn(k.step_size, mi), d));
        m[i] = mi;
        v[i] = vi;
        p[i] = r;
        if (low) store(low, low_type, i, r);
    }
}

__global__ void finite(const void* g, int type, int64_t n, int* bad) {
    int found = 0;
    for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n; i += static_cast<int64_t>(gridDim.x) * blockDim.x)
        found |= !isfinite(load(g, type, i));
    if (__syncthreads_or(found) && threadIdx.x == 0) atomicOr(bad, 1);
}

}  // namespace

extern "C" int elixir_cuda_adamw(const float* coefficients, void* p, void* m, void* v, const void* g, int g_type, void* low,
                                 int low_type, int64_t n, void* stream) {
    if (n == 0) return 0;
    const Coefficients k{coefficients[0], coefficients[1], coefficients[2], coefficients[3], coefficients[4],
                         coefficients[5], coefficients[6], coefficients[7], coefficients[8], coefficients[9]};
    const int64_t wanted = (n + 255) / 256;
    const int blocks = static_cast<int>(wanted < 4096 ? wanted : 4096);
    adamw<<<blocks, 256, 0, static_cast<cudaStream_t>(stream)>>>(k, static_cast<float*>(p), static_cast<float*>(m), static_cast<float*>(v), g, g_type, low, low_type, n);
    return static_cast<int>(cudaGetLastError());
}

extern "C" int elixir_cuda_not_finite(const void* g, int type, int64_t n, int* bad, void* stream) {
    if (n == 0) return 0;
    const int64_t wanted = (n + 255) / 256;
    finite<<<static_cast<int>(wanted < 1024 ? wanted : 1024), 256, 0, static_cast<cudaStream_t>(stream)>>>(g, type, n, bad);
    return static_cast<int>(cudaGetLastError());
}
