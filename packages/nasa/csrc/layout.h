// Zero-padded copies of images, split by stride phase, so that every read of a kernel is contiguous.
// Compiled once, without the flags of any instruction set: the kernels' files use no standard
// templates, whose code the linker would share between instruction sets.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "kernels.h"

namespace nasa {

constexpr int64_t kSlack = 64;  // readable elements behind a buffer: copies move whole vectors

// A stretch of a panel of pixels whose source and whose target are contiguous.
struct Run {
    int64_t at, length, source, target;
};

// The padded input of one group: plane (n, c, phase) holds the pixels whose padded coordinates are
// congruent to the phase modulo the stride. Output pixel (oh, ow) reads tap (c, r, s) at
// pixel(n, oh, ow) + taps[(c * kernel_h + r) * kernel_w + s].
struct Planes {
    int64_t rows, pitch, per_channel, per_image;
    float* data;
    int64_t* taps;

    Planes(const Shape& z, const float* x, int64_t group);
    ~Planes();
    Planes(const Planes&) = delete;
    Planes& operator=(const Planes&) = delete;
    int64_t pixel(int64_t n, int64_t oh, int64_t ow) const { return n * per_image + oh * pitch + ow; }
};

// The zero-padded output gradient of one group, and the taps that reach the input pixels of one
// stride phase. Class pixel (a, b) is input pixel (first_h + a * stride_h, first_w + b * stride_w);
// it receives gradient through tap t from pixel(n, a, b) + offset[t], with weight index tap[t].
struct Gradient {
    int64_t rows, pitch, per_filter, per_image, top, left;
    float* data;

    Gradient(const Shape& z, const float* gy, int64_t group);
    ~Gradient();
    Gradient(const Gradient&) = delete;
    Gradient& operator=(const Gradient&) = delete;
    int64_t pixel(int64_t n, int64_t a, int64_t b) const { return n * per_image + a * pitch + b; }
};

struct InputClass {
    int64_t first_h, first_w, count_h, count_w, taps;
    int64_t* offset;
    int64_t* tap;

    InputClass(const Shape& z, const Gradient& g, int64_t phase_h, int64_t phase_w);
    ~InputClass();
    InputClass(const InputClass&) = delete;
    InputClass& operator=(const InputClass&) = delete;
};

// Writes one row of `row` bytes per output pixel of channels-last images: the taps of a group in the
// order (r, s, c), zero in the padding and behind the last tap.
void byte_rows(const Shape& z, const int8_t* x, int64_t group, int64_t first, int64_t count, int64_t row, uint8_t* out);

float* new_floats(int64_t count);        // 64-byte aligned, with slack behind
uint8_t* new_bytes(int64_t count);       // likewise
template <class T> void release(T* p) { std::free(p); }

// Calls body(context, i) for i in [0, count), on up to `threads` threads, the caller among them.
void parallel_for(int64_t count, int threads, void (*body)(void*, int64_t), void* context);

}  // namespace nasa
