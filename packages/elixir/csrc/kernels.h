// AdamW, norms and copies over flat arrays. Every instruction set is one compilation of kernels_impl.h.
#pragma once
#include <cstdint>

namespace elixir {

enum Type : int { kNone = 0, kFloat32 = 1, kBFloat16 = 2, kFloat16 = 3 };

struct AdamW {
    float gradient_scale;  // clip coefficient / loss scale, negative when maximising
    float beta1, one_minus_beta1, beta2, one_minus_beta2;
    float inverse_sqrt_bias2, epsilon, decay, step_size, l2;
};

constexpr int64_t kTile = 32768;   // elements of a unit of work: threads never change results
constexpr int64_t kBlock = 2048;   // elements that share a scale of 8-bit moments

struct Kernels {
    const char* name;
    void (*adamw)(const AdamW&, float* p, float* m, float* v, const void* g, int g_type, void* low, int low_type,
                  int64_t n);
    // first: index of the first element in its parameter; with the seed it fixes how codes round
    void (*adamw8)(const AdamW&, float* p, int8_t* m, uint8_t* v, float* m_scale, float* v_scale, const void* g,
                   int g_type, void* low, int low_type, int64_t first, uint32_t seed, int64_t n);
    void (*norm)(const void* g, int type, int64_t n, double* sum, int* bad);
    void (*cast)(const void* from, int from_type, void* to, int to_type, int64_t n);
};

extern const Kernels kernels_portable, kernels_avx2, kernels_avx512;
const Kernels* find_kernels(const char* name);

void parallel_for(int64_t count, int threads, void (*body)(void*, int64_t), void* context);
int64_t belady_loads(const int64_t* items, const int64_t* offsets, int64_t steps, int64_t chunks, int64_t blocks);

}  // namespace elixir
