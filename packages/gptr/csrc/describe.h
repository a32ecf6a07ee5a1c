// Gestalt descriptors of an image: one pass over its pixels, integers until the last step.
#pragma once

#include <cstdint>

namespace gptr {

struct Image {
    const uint8_t* rgb;  // height x width x 3, both sides multiples of the stride
    int64_t height, width;
};

// Outputs of one image with N = (height / stride) * (width / stride) cells.
struct Fields {
    float* colour;     // N x 9: mean, standard deviation, cube root of the third central moment
    float* tensor;     // N x 3: cos 2 theta, sin 2 theta, coherence of the structure tensor
    uint8_t* borders;  // N x 4 x stride: edge map along top, bottom, left and right of the cell
    uint8_t* edges;    // height x width: Canny edge map, 0 or 1
};

using Describe = void (*)(const Image&, int64_t stride, int low, int high, const Fields&);

void describe_portable(const Image&, int64_t, int, int, const Fields&);
#ifdef GPTR_X86
void describe_avx2(const Image&, int64_t, int, int, const Fields&);
void describe_avx512(const Image&, int64_t, int, int, const Fields&);
#endif

// Null where this processor lacks the instruction set; an empty name asks for the best one.
Describe find_describe(const char* name);
const char* best_isa();

}  // namespace gptr
