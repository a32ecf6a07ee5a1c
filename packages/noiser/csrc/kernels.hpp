// The kernels that exist once per instruction set.
#pragma once

#include <string>

#include "image_view.hpp"

namespace noiser {

struct Network {
    int channels;
    const float* conv1_weight;  // [channels][27], instance normalisation folded in
    const float* conv1_bias;    // [channels], for the centred input
    const float* conv2_weight;  // [3][channels][3][3]
    const float* conv2_bias;    // [3]
    float centre[3];            // input of channel c is (sample - centre[c]) * scale
    float scale;
    bool zeros;                 // border of zeros in [-1, 1]; otherwise mirrored
    float border[3];            // what such a zero is for the centred input
};

// Output in [0, 1] of the rows [first, last), interleaved; samples u8, u16 or f32.
using NetworkRows = void (*)(const Network&, const ImageView&, std::int64_t first,
                             std::int64_t last, void* out, Sample out_sample);

// Sums of each padded row r in [first, last), -1 <= r <= height, with the rows r, r + 1, r + 2:
// 243 products [row lag][channel][channel'][column][column'], then 9 sums [channel][column].
constexpr int ROW_SUMS = 252;
using IntegerRowSums = void (*)(const ImageView&, bool zeros, std::int64_t first,
                                std::int64_t last, std::int64_t* sums);
using FloatRowSums = void (*)(const ImageView&, bool zeros, std::int64_t first, std::int64_t last,
                              double* sums);

// The tone curve of the method "plus".
struct Tone {
    const float* table;  // value after the power, for each level of the samples
    float channel_mean[3], channel_scale[3];
    float luma_mean, luma_scale;
    float chroma, detail, most_gain, strength, middle, gain_floor;
    const float *slope_map, *offset_map;  // [block_rows][block_columns], guided filter
    std::int64_t block_rows, block_columns;
    int factor;  // pixels along the side of a block
};

// Rows [first, last) of a whole image of u8 or u16 samples; out is u8, u16 or f32.
using ToneRows = void (*)(const Tone&, const void* image, Sample in, std::int64_t width,
                          std::int64_t first, std::int64_t last, void* out, Sample to);

// Noise self-regression.
struct Training {
    int size, channels;
    float tv_weight;
    double learning_rate, beta1, beta2;
};

// Steps on noise images [steps][3][size][size]. Weights, Adam's moments and the last gradients are
// conv1 weight [channels][27], conv2 weight [3][channels][9], conv2 bias [3]; losses [steps][2].
using TrainingSteps = void (*)(const Training&, const float* noise, std::int64_t steps,
                               std::int64_t done, float* const weights[3], float* const first[3],
                               float* const second[3], double* losses, float* const gradients[3]);

struct Kernels {
    const char* name;
    NetworkRows network_rows;
    IntegerRowSums integer_row_sums;
    FloatRowSums float_row_sums;
    ToneRows tone_rows;
    TrainingSteps training_steps;
};

Kernels avx512_kernels();
Kernels avx2_kernels();
Kernels portable_kernels();

// Whether this processor runs the set of that name; the empty name stands for the best one.
bool kernels_available(const std::string& name);

// The set of that name; throws where it cannot run.
Kernels choose_kernels(const std::string& name);

}  // namespace noiser
