// What the kernels of every instruction set offer; dispatch.cpp chooses one table at run time.
#pragma once

#include <cstdint>

namespace nasa {

// A convolution of one image batch; groups are handled by the kernels.
struct Shape {
    int64_t batch, channels, height, width;         // input  [batch, channels, height, width]
    int64_t filters, kernel_h, kernel_w, groups;    // weight [filters, channels / groups, kernel_h, kernel_w]
    int64_t out_h, out_w;                           // output [batch, filters, out_h, out_w]
    int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

struct Kernels {
    const char* name;
    // y = -sum |x - w|; exact: accumulate |x - w| itself instead of the max identity
    void (*adder_forward)(const Shape&, const float* x, const float* w, float* y, bool exact, int threads);
    // gx = sum clamp(w - x, -1, 1) * gy
    void (*adder_grad_input)(const Shape&, const float* x, const float* w, const float* gy, float* gx, int threads);
    // y = -sum |x - w| over int8, in int32; x, w and y are channels-last
    void (*sad_int8)(const Shape&, const int8_t* x, const int8_t* w, int32_t* y, int threads);
    // y = sum x * w over int8, in int32; x, w and y are channels-last
    void (*conv_int8)(const Shape&, const int8_t* x, const int8_t* w, int32_t* y, int threads);
    // Accumulates in registers alone, without a load or a store; returns how many elements, 0 if this table cannot.
    // 0: x * w, as a convolution does; 1: max and fma, as the adder does; 2: max and add; 3: |x - w| itself.
    int64_t (*probe)(int formula, int64_t steps);
};

extern const Kernels kernels_portable;
#if defined(__x86_64__) || defined(_M_X64)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

// The table for a name ("avx512", "avx2", "portable") or the best one for an empty name;
// null where this processor or this build does not have it.
const Kernels* find_kernels(const char* name);

}  // namespace nasa
