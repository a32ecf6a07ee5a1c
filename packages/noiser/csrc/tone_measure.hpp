// Histograms and block means that the tone curve is measured from.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace noiser {

constexpr int LUMA_BINS = 4096;

// Adds the rows [first, last) to counts[3][levels] and to the histogram of the luma.
template <typename T>
void add_histograms(const T* image, std::int64_t width, std::int64_t first, std::int64_t last,
                    std::int64_t levels, std::int64_t* counts, std::int64_t* luma) {
    const float scale = static_cast<float>(LUMA_BINS) / static_cast<float>(levels - 1);
    const T* at = image + first * width * 3;
    const T* end = image + last * width * 3;
    for (; at < end; at += 3) {
        ++counts[at[0]];
        ++counts[levels + at[1]];
        ++counts[2 * levels + at[2]];
        const float y = 0.299f * at[0] + 0.587f * at[1] + 0.114f * at[2];
        ++luma[std::min(static_cast<int>(y * scale), LUMA_BINS - 1)];
    }
}

// One row of blocks of factor x factor pixels: mean luma after the table, each; the last blocks
// repeat the edge. Also the sums of the luma and of its square over the pixels.
template <typename T>
void block_means(const T* image, std::int64_t height, std::int64_t width, const float* table,
                 int factor, std::int64_t block, std::int64_t columns, double* means,
                 double sums[2]) {
    std::fill_n(means, columns, 0.0);
    std::vector<double> row(static_cast<std::size_t>(columns));
    for (int k = 0; k < factor; ++k) {
        const std::int64_t y = block * factor + k;
        if (y < height) {
            const T* at = image + y * width * 3;
            double last = 0, total = 0, square = 0;
            for (std::int64_t b = 0; b < columns; ++b) {
                const std::int64_t end = std::min((b + 1) * factor, width);
                double sum = 0;
                for (std::int64_t x = b * factor; x < end; ++x, at += 3) {
                    last = 0.299f * table[at[0]] + 0.587f * table[at[1]] + 0.114f * table[at[2]];
                    sum += last;
                    square += last * last;
                }
                total += sum;
                row[static_cast<std::size_t>(b)] =
                    sum + last * static_cast<double>((b + 1) * factor - end);
            }
            sums[0] += total;
            sums[1] += square;
        }
        for (std::int64_t b = 0; b < columns; ++b) means[b] += row[static_cast<std::size_t>(b)];
    }
    for (std::int64_t b = 0; b < columns; ++b) means[b] /= static_cast<double>(factor) * factor;
}

}  // namespace noiser
