// The tone curve of the method "plus", pixel by pixel; src/noiser/tone.py is its reference.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels.hpp"
#include "simd.hpp"

namespace {

// Coefficients of the guided filter in one image row: linear between the centres of the blocks.
struct BlockColumns {
    std::vector<int> low, high;
    std::vector<float> weight;

    BlockColumns(std::int64_t width, int factor, std::int64_t blocks)
        : low(static_cast<std::size_t>(width)), high(low.size()), weight(low.size()) {
        for (std::size_t x = 0; x < low.size(); ++x) {
            const double at = std::clamp((static_cast<double>(x) + 0.5) / factor - 0.5, 0.0,
                                         static_cast<double>(blocks - 1));
            low[x] = static_cast<int>(at);
            high[x] = std::min(low[x] + 1, static_cast<int>(blocks - 1));
            weight[x] = static_cast<float>(at - low[x]);
        }
    }
};

void block_row(const float* map, std::int64_t y, int factor, std::int64_t rows,
               std::int64_t columns, float* to) {
    const double at = std::clamp((static_cast<double>(y) + 0.5) / factor - 0.5, 0.0,
                                 static_cast<double>(rows - 1));
    const auto low = static_cast<std::int64_t>(at), high = std::min(low + 1, rows - 1);
    const auto w = static_cast<float>(at - static_cast<double>(low));
    for (std::int64_t x = 0; x < columns; ++x)
        to[x] = map[low * columns + x] * (1 - w) + map[high * columns + x] * w;
}

template <typename In, typename Out>
void tone_rows_of(const noiser::Tone& tone, const In* image, std::int64_t width,
                  std::int64_t first, std::int64_t last, Out* out) {
    constexpr float in_white = sizeof(In) == 1 ? 255.0f : 65535.0f;
    constexpr bool integer = !std::is_same_v<Out, float>;
    constexpr float out_white = !integer ? 1.0f : sizeof(Out) == 1 ? 255.0f : 65535.0f;
    constexpr float half = integer ? 0.5f : 0.0f;
    const BlockColumns at(width, tone.factor, tone.block_columns);
    const auto padded = static_cast<std::size_t>((width + LANES - 1) / LANES * LANES);
    std::vector<float> planes(8 * padded, 0.5f);
    float* powered[3] = {&planes[0], &planes[padded], &planes[2 * padded]};
    float* plain[3] = {&planes[3 * padded], &planes[4 * padded], &planes[5 * padded]};
    float *slope = &planes[6 * padded], *offset = &planes[7 * padded];
    std::vector<float> slope_row(static_cast<std::size_t>(tone.block_columns));
    std::vector<float> offset_row(slope_row.size());
    for (std::int64_t y = first; y < last; ++y) {
        block_row(tone.slope_map, y, tone.factor, tone.block_rows, tone.block_columns,
                  slope_row.data());
        block_row(tone.offset_map, y, tone.factor, tone.block_rows, tone.block_columns,
                  offset_row.data());
        const In* row = image + y * width * 3;
        for (std::int64_t x = 0; x < width; ++x) {
            for (int c = 0; c < 3; ++c) {
                powered[c][x] = tone.table[row[3 * x + c]];
                plain[c][x] = static_cast<float>(row[3 * x + c]) * (1.0f / in_white);
            }
            const int low = at.low[static_cast<std::size_t>(x)];
            const int high = at.high[static_cast<std::size_t>(x)];
            const float w = at.weight[static_cast<std::size_t>(x)];
            slope[x] = slope_row[low] * (1 - w) + slope_row[high] * w;
            offset[x] = offset_row[low] * (1 - w) + offset_row[high] * w;
        }
        for (std::size_t x = 0; x < padded; x += LANES) {
            const Vec p[3] = {load(powered[0] + x), load(powered[1] + x), load(powered[2] + x)};
            const Vec luma = p[0] * 0.299f + p[1] * 0.587f + p[2] * 0.114f;
            const Vec base = load(slope + x) * luma + load(offset + x);
            Vec lit = tone.middle + 0.5f * tanh((base - tone.luma_mean) * tone.luma_scale);
            lit = upper(lower(lit + tone.detail * (luma - base), splat(1.0f)), splat(0.0f));
            const Vec gain = lower(lit / upper(luma, splat(tone.gain_floor)), splat(tone.most_gain));
            for (int c = 0; c < 3; ++c) {
                const Vec z = (p[c] - tone.channel_mean[c]) * tone.channel_scale[c];
                const Vec gray_world = tone.middle + 0.5f * tanh(z);
                const Vec kept = lower(p[c] * gain, splat(1.0f));
                const Vec mixed = gray_world + tone.chroma * (kept - gray_world);
                const Vec v = load(plain[c] + x);
                const Vec result = v + tone.strength * (mixed - v);
                store(powered[c] + x,
                      upper(lower(result, splat(1.0f)), splat(0.0f)) * out_white + half);
            }
        }
        Out* to = out + (y - first) * width * 3;
        for (std::int64_t x = 0; x < width; ++x)
            for (int c = 0; c < 3; ++c) to[3 * x + c] = static_cast<Out>(powered[c][x]);
    }
}

void tone_rows(const noiser::Tone& tone, const void* image, noiser::Sample in, std::int64_t width,
               std::int64_t first, std::int64_t last, void* out, noiser::Sample to) {
    using noiser::Sample;
    auto write = [&](auto* typed) {
        if (in == Sample::u8)
            tone_rows_of(tone, static_cast<const std::uint8_t*>(image), width, first, last, typed);
        else
            tone_rows_of(tone, static_cast<const std::uint16_t*>(image), width, first, last, typed);
    };
    if (to == Sample::u8) return write(static_cast<std::uint8_t*>(out));
    if (to == Sample::u16) return write(static_cast<std::uint16_t*>(out));
    write(static_cast<float*>(out));
}

}  // namespace
