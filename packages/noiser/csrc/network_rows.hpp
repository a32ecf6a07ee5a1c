// One fused pass: 3x3 convolution with folded normalisation, GELU, 3x3 convolution, tanh.
//
// The image is cut into strips of columns, so that the three hidden rows that the second
// convolution needs stay in cache. Hidden rows live in a ring; each is computed once per strip.
// Every output value is the result of the same operations in the same order wherever strips,
// bands and threads begin, so the cut never shows.
#pragma once

#include <algorithm>
#include <new>
#include <type_traits>
#include <vector>

#include "kernels.hpp"
#include "simd.hpp"

namespace {

using noiser::ImageView;
using noiser::mirror;
using noiser::Network;
using noiser::Sample;

constexpr int STRIP = 512;
#if NOISER_LANES == 16
constexpr int CHANNEL_BLOCK = 9, PIXELS_1 = 3, PIXELS_2 = 8;
#else
constexpr int CHANNEL_BLOCK = 6, PIXELS_1 = 2, PIXELS_2 = 4;
#endif
constexpr int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }
// Room for the halo, and for whole blocks of vectors beyond the last column.
constexpr int STRIDE = round_up(STRIP + 4 + LANES * (PIXELS_1 > PIXELS_2 ? PIXELS_1 : PIXELS_2), 16);

// A loaded vector that does not straddle two cache lines costs half as much.
template <typename T>
struct CacheLines {
    using value_type = T;
    CacheLines() = default;
    template <typename U>
    CacheLines(const CacheLines<U>&) {}
    T* allocate(std::size_t n) {
        return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64)));
    }
    void deallocate(T* p, std::size_t) { ::operator delete(p, std::align_val_t(64)); }
    template <typename U>
    bool operator==(const CacheLines<U>&) const { return true; }
    template <typename U>
    bool operator!=(const CacheLines<U>&) const { return false; }
};
using Floats = std::vector<float, CacheLines<float>>;

struct Scratch {
    int blocks;                     // channel blocks
    Floats input;       // [4][3][STRIDE] ring of input rows, first column x0 - 2
    Floats hidden;      // [3][channels][STRIDE] ring, first column x0 - 1
    Floats weight;      // conv1: [block][27][CHANNEL_BLOCK]
    Floats bias;        // [block][CHANNEL_BLOCK]
    Floats second;      // conv2: [channels][3][3][3 outputs]
    Floats out;         // [3][STRIDE]

    explicit Scratch(const Network& net)
        : blocks((net.channels + CHANNEL_BLOCK - 1) / CHANNEL_BLOCK),
          input(4 * 3 * STRIDE),
          hidden(static_cast<std::size_t>(3) * blocks * CHANNEL_BLOCK * STRIDE),
          weight(static_cast<std::size_t>(blocks) * 27 * CHANNEL_BLOCK),
          bias(static_cast<std::size_t>(blocks) * CHANNEL_BLOCK),
          second(static_cast<std::size_t>(net.channels) * 27),
          out(3 * STRIDE) {
        for (int c = 0; c < net.channels; ++c) {
            const int block = c / CHANNEL_BLOCK, lane = c % CHANNEL_BLOCK;
            bias[block * CHANNEL_BLOCK + lane] = net.conv1_bias[c];
            for (int t = 0; t < 27; ++t) {
                weight[(block * 27 + t) * CHANNEL_BLOCK + lane] = net.conv1_weight[c * 27 + t];
                for (int o = 0; o < 3 && t < 9; ++o)
                    second[(c * 9 + t) * 3 + o] =
                        net.conv2_weight[(o * net.channels + c) * 9 + t];
            }
        }
    }
    float* input_row(std::int64_t y, int channel) {
        return &input[static_cast<std::size_t>(((y + 8) % 4) * 3 + channel) * STRIDE];
    }
    float* hidden_row(std::int64_t y, int channel) {
        return &hidden[static_cast<std::size_t>(((y + 9) % 3) * blocks * CHANNEL_BLOCK + channel) *
                       STRIDE];
    }
};

// Samples as the kernel's centred floats; doubles are centred before they are rounded.
template <typename T>
void read_row(const Network& net, const ImageView& image, std::int64_t y, std::int64_t x0,
              int count, float* const planes[3]) {
    using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const T* row = static_cast<const T*>(image.row(y));
    const int begin = static_cast<int>(std::max<std::int64_t>(-x0, 0));
    const int end = static_cast<int>(std::min<std::int64_t>(count, image.width - x0));
    for (int c = 0; c < 3; ++c) {
        const Wide centre = static_cast<Wide>(net.centre[c]), scale = static_cast<Wide>(net.scale);
        float* plane = planes[c];
        const T* from = row + x0 * 3 + c;
        for (int x = begin; x < end; ++x)
            plane[x] = static_cast<float>((static_cast<Wide>(from[3 * x]) - centre) * scale);
        auto outside = [&](int x) {
            const T value = row[mirror(x0 + x, image.width) * 3 + c];
            plane[x] = net.zeros ? net.border[c]
                                 : static_cast<float>((static_cast<Wide>(value) - centre) * scale);
        };
        for (int x = 0; x < begin; ++x) outside(x);
        for (int x = end; x < count; ++x) outside(x);
    }
}

void load_input(const Network& net, const ImageView& image, Scratch& s, std::int64_t y,
                std::int64_t x0, int count) {
    float* planes[3] = {s.input_row(y, 0), s.input_row(y, 1), s.input_row(y, 2)};
    if (net.zeros && (y < 0 || y >= image.height)) {
        for (int c = 0; c < 3; ++c) std::fill_n(planes[c], count, net.border[c]);
        return;
    }
    const std::int64_t row = mirror(y, image.height);
    switch (image.sample) {
        case Sample::u8: return read_row<std::uint8_t>(net, image, row, x0, count, planes);
        case Sample::u16: return read_row<std::uint16_t>(net, image, row, x0, count, planes);
        case Sample::f32: return read_row<float>(net, image, row, x0, count, planes);
        case Sample::f64: return read_row<double>(net, image, row, x0, count, planes);
    }
}

// The inner loops stand in functions of their own, so that the registers hold nothing else.

// CHANNEL_BLOCK pre-activations of LANES * PIXELS_1 pixels.
__attribute__((noinline)) void first_convolution(const float* const rows[9], int x,
                                                 const float* weight, const float* bias,
                                                 float* to) {
    Vec acc[CHANNEL_BLOCK][PIXELS_1];
#pragma GCC unroll 9
    for (int k = 0; k < CHANNEL_BLOCK; ++k)
#pragma GCC unroll 3
        for (int p = 0; p < PIXELS_1; ++p) acc[k][p] = splat(bias[k]);
#pragma GCC unroll 1
    for (int r = 0; r < 9; ++r) {
        const float* row = rows[r] + x;
#pragma GCC unroll 1
        for (int dx = 0; dx < 3; ++dx, ++row, weight += CHANNEL_BLOCK) {
            Vec in[PIXELS_1];
#pragma GCC unroll 3
            for (int p = 0; p < PIXELS_1; ++p) in[p] = load(row + p * LANES);
#pragma GCC unroll 9
            for (int k = 0; k < CHANNEL_BLOCK; ++k) {
                const Vec w = splat(weight[k]);
#pragma GCC unroll 3
                for (int p = 0; p < PIXELS_1; ++p) acc[k][p] += w * in[p];
            }
        }
    }
#pragma GCC unroll 9
    for (int k = 0; k < CHANNEL_BLOCK; ++k)
#pragma GCC unroll 3
        for (int p = 0; p < PIXELS_1; ++p)
            store(to + static_cast<std::size_t>(k) * STRIDE + p * LANES, acc[k][p]);
}

// GELU of the block that first_convolution has just stored.
__attribute__((noinline)) void activate(float* to) {
    for (int k = 0; k < CHANNEL_BLOCK; k += 3)
        for (int p = 0; p < PIXELS_1; ++p) {
            Vec z[3];
#pragma GCC unroll 3
            for (int i = 0; i < 3; ++i)
                z[i] = load(to + static_cast<std::size_t>(k + i) * STRIDE + p * LANES);
#pragma GCC unroll 3
            for (int i = 0; i < 3; ++i)
                store(to + static_cast<std::size_t>(k + i) * STRIDE + p * LANES, gelu(z[i]));
        }
}
static_assert(CHANNEL_BLOCK % 3 == 0, "activate takes three channels at a time");

// Sums of the second convolution of LANES * PIXELS_2 pixels, three output planes.
__attribute__((noinline)) void second_convolution(const float* const hidden[3], int x,
                                                  int channels, const float* weight,
                                                  const float* bias, float* to) {
    Vec acc[3][PIXELS_2];
#pragma GCC unroll 3
    for (int o = 0; o < 3; ++o)
#pragma GCC unroll 8
        for (int p = 0; p < PIXELS_2; ++p) acc[o][p] = splat(bias[o]);
#pragma GCC unroll 1
    for (int c = 0; c < channels; ++c) {
#pragma GCC unroll 1
        for (int dy = 0; dy < 3; ++dy) {
            const float* row = hidden[dy] + static_cast<std::size_t>(c) * STRIDE + x;
#pragma GCC unroll 1
            for (int dx = 0; dx < 3; ++dx, ++row, weight += 3) {
                const Vec w0 = splat(weight[0]), w1 = splat(weight[1]), w2 = splat(weight[2]);
#pragma GCC unroll 8
                for (int p = 0; p < PIXELS_2; ++p) {
                    const Vec in = load(row + p * LANES);
                    acc[0][p] += w0 * in;
                    acc[1][p] += w1 * in;
                    acc[2][p] += w2 * in;
                }
            }
        }
    }
#pragma GCC unroll 3
    for (int o = 0; o < 3; ++o)
#pragma GCC unroll 8
        for (int p = 0; p < PIXELS_2; ++p)
            store(to + static_cast<std::size_t>(o) * STRIDE + p * LANES, acc[o][p]);
}

// Hidden row y of the columns x0 - 1 ... x0 + width, from three input rows. y is inside the image.
void compute_hidden(const Network& net, const ImageView& image, Scratch& s, std::int64_t y,
                    std::int64_t x0, int width) {
    const int count = width + 2;
    const float* rows[9];
    for (int c = 0; c < 3; ++c)
        for (int dy = 0; dy < 3; ++dy) rows[c * 3 + dy] = s.input_row(y - 1 + dy, c);
    for (int block = 0; block < s.blocks; ++block) {
        const float* weight = &s.weight[static_cast<std::size_t>(block) * 27 * CHANNEL_BLOCK];
        const float* bias = &s.bias[static_cast<std::size_t>(block) * CHANNEL_BLOCK];
        float* to = s.hidden_row(y, block * CHANNEL_BLOCK);
        for (int x = 0; x < count; x += LANES * PIXELS_1) {
            first_convolution(rows, x, weight, bias, to + x);
            activate(to + x);
        }
    }
    // Columns outside the image: mirrored hidden values, or zeros.
    for (std::int64_t x : {x0 - 1, x0 + width}) {
        if (x >= 0 && x < image.width) continue;
        const int at = static_cast<int>(x - x0 + 1);
        const int from = static_cast<int>(mirror(x, image.width) - x0 + 1);
        for (int c = 0; c < net.channels; ++c) {
            float* plane = s.hidden_row(y, c);
            plane[at] = net.zeros ? 0.0f : plane[from];
        }
    }
}

void compute_output(const Network& net, Scratch& s, const float* const hidden[3], int width) {
    for (int x = 0; x < width; x += LANES * PIXELS_2)
        second_convolution(hidden, x, net.channels, s.second.data(), net.conv2_bias, &s.out[x]);
    for (int o = 0; o < 3; ++o) {
        float* plane = &s.out[static_cast<std::size_t>(o) * STRIDE];
        for (int x = 0; x < width; x += LANES)
            store(plane + x, tanh(load(plane + x)) * 0.5f + 0.5f);
    }
}

template <typename T>
void write_row(const Scratch& s, T* to, int width, float white) {
    const float *r = &s.out[0], *g = &s.out[STRIDE], *b = &s.out[2 * STRIDE];
    const float half = white > 1.0f ? 0.5f : 0.0f;
    for (int x = 0; x < width; ++x) {
        to[3 * x] = static_cast<T>(r[x] * white + half);
        to[3 * x + 1] = static_cast<T>(g[x] * white + half);
        to[3 * x + 2] = static_cast<T>(b[x] * white + half);
    }
}

void network_rows(const Network& net, const ImageView& image, std::int64_t first,
                  std::int64_t last, void* out, Sample out_sample) {
    Scratch s(net);
    Floats zero_hidden;
    if (net.zeros)
        zero_hidden.assign(static_cast<std::size_t>(net.channels) * STRIDE, 0.0f);
    for (std::int64_t x0 = 0; x0 < image.width; x0 += STRIP) {
        const int width = static_cast<int>(std::min<std::int64_t>(STRIP, image.width - x0));
        auto input = [&](std::int64_t y) { load_input(net, image, s, y, x0 - 2, width + 4); };
        auto hidden = [&](std::int64_t y) { compute_hidden(net, image, s, y, x0, width); };
        const std::int64_t top = std::max<std::int64_t>(first - 1, 0);
        input(top - 1);
        input(top);
        std::int64_t ready = top - 1;  // last hidden row computed
        for (std::int64_t y = first; y < last; ++y) {
            const std::int64_t needed = std::min(y + 1, image.height - 1);
            while (ready < needed) {
                input(ready + 2);
                hidden(++ready);
            }
            const float* rows[3];
            for (int dy = 0; dy < 3; ++dy) {
                const std::int64_t row = y - 1 + dy;
                const bool outside = row < 0 || row >= image.height;
                rows[dy] = outside && net.zeros ? zero_hidden.data()
                                                : s.hidden_row(mirror(row, image.height), 0);
            }
            compute_output(net, s, rows, width);
            const std::size_t at = static_cast<std::size_t>((y - first) * image.width + x0) * 3;
            switch (out_sample) {
                case Sample::u8:
                    write_row(s, static_cast<std::uint8_t*>(out) + at, width, 255.0f);
                    break;
                case Sample::u16:
                    write_row(s, static_cast<std::uint16_t*>(out) + at, width, 65535.0f);
                    break;
                case Sample::f32:
                    write_row(s, static_cast<float*>(out) + at, width, 1.0f);
                    break;
                case Sample::f64:
                    write_row(s, static_cast<double*>(out) + at, width, 1.0f);
                    break;
            }
        }
    }
}

}  // namespace
