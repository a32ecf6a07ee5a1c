// Sums over one padded row that the patch covariance is made of.
//
// Patch entries (c, dy, dx) and (c', dy', dx') multiply pixels whose distance is a lag of at most
// two rows and two columns. For one lag, the sums of the nine column pairs differ only in the
// outermost columns, so one long dot product serves several of them.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "kernels.hpp"

namespace {

// sums[k] = sum over i of a[i] b[i + k - 2], for the five column lags at once: a is loaded once.

// 8-bit samples: centred values fit 16 bits, a block of products fits 32 bits.
inline void dots(const std::int16_t* a, const std::int16_t* b, std::int64_t n,
                 std::int64_t sums[5]) {
    constexpr std::int64_t BLOCK = 16384;
    std::fill_n(sums, 5, 0);
    for (std::int64_t at = 0; at < n; at += BLOCK) {
        const std::int64_t end = std::min(at + BLOCK, n);
        std::int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0;
        for (std::int64_t i = at; i < end; ++i) {
            const std::int32_t x = a[i];
            s0 += x * b[i - 2];
            s1 += x * b[i - 1];
            s2 += x * b[i];
            s3 += x * b[i + 1];
            s4 += x * b[i + 2];
        }
        sums[0] += s0;
        sums[1] += s1;
        sums[2] += s2;
        sums[3] += s3;
        sums[4] += s4;
    }
}

typedef double DoubleVec __attribute__((vector_size(NOISER_LANES * 4), aligned(8), may_alias));
constexpr int DOUBLE_LANES = NOISER_LANES / 2;

inline DoubleVec load_doubles(const double* p) { return *reinterpret_cast<const DoubleVec*>(p); }

inline void dots(const double* a, const double* b, std::int64_t n, double sums[5]) {
    DoubleVec total[5][2] = {};
    std::int64_t i = 0;
    for (; i + 2 * DOUBLE_LANES <= n; i += 2 * DOUBLE_LANES)
        for (int half = 0; half < 2; ++half) {
            const std::int64_t at = i + half * DOUBLE_LANES;
            const DoubleVec x = load_doubles(a + at);
            for (int k = 0; k < 5; ++k) total[k][half] += x * load_doubles(b + at + k - 2);
        }
    for (int k = 0; k < 5; ++k) {
        const DoubleVec both = total[k][0] + total[k][1];
        sums[k] = 0;
        for (int lane = 0; lane < DOUBLE_LANES; ++lane) sums[k] += both[lane];
        for (std::int64_t x = i; x < n; ++x) sums[k] += a[x] * b[x + k - 2];
    }
}

template <typename Value, typename T>
void centred_row(const noiser::ImageView& image, std::int64_t row, Value white, Value* planes,
                 std::int64_t stride) {
    const T* from = static_cast<const T*>(image.row(row));
    for (int c = 0; c < 3; ++c) {
        Value* to = planes + c * stride + 1;
        for (std::int64_t x = 0; x < image.width; ++x)
            to[x] = static_cast<Value>(2 * static_cast<Value>(from[3 * x + c]) - white);
    }
}

// Row r of the padded image as three planes of width + 2 centred values.
template <typename Value>
void padded_planes(const noiser::ImageView& image, bool zeros, std::int64_t r, Value* planes) {
    const std::int64_t stride = image.width + 2;
    if (zeros && (r < 0 || r >= image.height)) {
        std::fill_n(planes, 3 * stride, Value(0));
        return;
    }
    const std::int64_t row = noiser::mirror(r, image.height);
    switch (image.sample) {
        case noiser::Sample::u8:
            centred_row<Value, std::uint8_t>(image, row, Value(255), planes, stride);
            break;
        default:
            // 16-bit values serve 8-bit samples only.
            if constexpr (std::is_same_v<Value, double>) {
                if (image.sample == noiser::Sample::u16)
                    centred_row<double, std::uint16_t>(image, row, 65535.0, planes, stride);
                else if (image.sample == noiser::Sample::f32)
                    centred_row<double, float>(image, row, 1.0, planes, stride);
                else
                    centred_row<double, double>(image, row, 1.0, planes, stride);
            }
    }
    for (int c = 0; c < 3; ++c) {
        Value* plane = planes + c * stride;
        plane[0] = zeros ? Value(0) : plane[1 + noiser::mirror(-1, image.width)];
        plane[stride - 1] = zeros ? Value(0) : plane[1 + noiser::mirror(image.width, image.width)];
    }
}

// to[dx][dx'] = sum over x in [0, width) of a[x + dx] b[x + dx'].
template <typename Value, typename Sum>
void products_of_rows(const Value* a, const Value* b, std::int64_t width, Sum* to) {
    auto slow = [&](std::int64_t from, std::int64_t until, int lag) {
        Sum sum = 0;
        for (std::int64_t x = from; x < until; ++x)
            sum += static_cast<Sum>(a[x]) * static_cast<Sum>(b[x + lag]);
        return sum;
    };
    // The windows [dx, dx + width) share [2, width).
    Sum shared[5] = {};
    const bool wide = width > 2;
    if (wide) dots(a + 2, b + 2, width - 2, shared);
    for (int dx = 0; dx < 3; ++dx)
        for (int ex = 0; ex < 3; ++ex) {
            const int lag = ex - dx;
            to[dx * 3 + ex] = wide ? slow(dx, 2, lag) + shared[lag + 2] + slow(width, dx + width, lag)
                                   : slow(dx, dx + width, lag);
        }
}

template <typename Value, typename Sum>
void row_sums(const noiser::ImageView& image, bool zeros, std::int64_t first, std::int64_t last,
              Sum* sums) {
    const std::int64_t stride = image.width + 2;
    std::vector<Value> planes(static_cast<std::size_t>(9 * stride));  // ring of three rows
    auto plane = [&](std::int64_t r) { return planes.data() + (r + 3) % 3 * 3 * stride; };
    std::int64_t ready = first - 1;
    for (std::int64_t r = first; r < last; ++r, sums += noiser::ROW_SUMS) {
        const std::int64_t lags = std::min<std::int64_t>(2, image.height - r);
        for (; ready < r + lags; ++ready)
            padded_planes(image, zeros, ready + 1, plane(ready + 1));
        std::fill_n(sums, noiser::ROW_SUMS, Sum(0));
        for (int lag = 0; lag <= lags; ++lag)
            for (int c = 0; c < 3; ++c)
                for (int d = 0; d < 3; ++d) {
                    Sum* to = sums + ((lag * 3 + c) * 3 + d) * 9;
                    if (lag == 0 && d < c) {  // the transpose of (d, c)
                        const Sum* from = sums + (d * 3 + c) * 9;
                        for (int i = 0; i < 9; ++i) to[i] = from[i % 3 * 3 + i / 3];
                    } else {
                        products_of_rows(plane(r) + c * stride, plane(r + lag) + d * stride,
                                         image.width, to);
                    }
                }
        for (int c = 0; c < 3; ++c)
            for (int dx = 0; dx < 3; ++dx) {
                Sum sum = 0;
                const Value* from = plane(r) + c * stride + dx;
                for (std::int64_t x = 0; x < image.width; ++x) sum += static_cast<Sum>(from[x]);
                sums[243 + c * 3 + dx] = sum;
            }
    }
}

void integer_row_sums(const noiser::ImageView& image, bool zeros, std::int64_t first,
                      std::int64_t last, std::int64_t* sums) {
    if (image.sample == noiser::Sample::u8)
        return row_sums<std::int16_t>(image, zeros, first, last, sums);
    // Products of 17-bit values in double precision: exact while a row has below 2^21 pixels.
    std::vector<double> exact(static_cast<std::size_t>((last - first) * noiser::ROW_SUMS));
    row_sums<double>(image, zeros, first, last, exact.data());
    for (double value : exact) *sums++ = static_cast<std::int64_t>(value);
}

void float_row_sums(const noiser::ImageView& image, bool zeros, std::int64_t first,
                    std::int64_t last, double* sums) {
    row_sums<double>(image, zeros, first, last, sums);
}

}  // namespace
