// Included once per instruction set, with GPTR_DESCRIBE naming the function. The loops over a
// row are written for the compiler's vectoriser: no branches, unit stride.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "describe.h"

namespace gptr {
namespace {

constexpr int32_t TG22 = 13573;  // tan(22.5 degrees) * 2^15, as OpenCV's Canny rounds it

// Luma in 8-bit fixed point, into a row with one replicated pixel on each side.
void grey_row(const uint8_t* rgb, int64_t width, int16_t* out) {
    for (int64_t x = 0; x < width; ++x)
        out[x + 1] = static_cast<int16_t>((77 * rgb[3 * x] + 150 * rgb[3 * x + 1] + 29 * rgb[3 * x + 2] + 128) >> 8);
    out[0] = out[1];
    out[width + 1] = out[width];
}

// 3 x 3 Sobel of the row between `above` and `below`, and the L1 magnitude.
void sobel_row(const int16_t* above, const int16_t* here, const int16_t* below, int64_t width,
               int16_t* gx, int16_t* gy, int16_t* magnitude) {
    for (int64_t x = 0; x < width; ++x) {
        const int16_t left = static_cast<int16_t>(above[x] + 2 * here[x] + below[x]);
        const int16_t right = static_cast<int16_t>(above[x + 2] + 2 * here[x + 2] + below[x + 2]);
        const int16_t top = static_cast<int16_t>(above[x] + 2 * above[x + 1] + above[x + 2]);
        const int16_t bottom = static_cast<int16_t>(below[x] + 2 * below[x + 1] + below[x + 2]);
        const int16_t dx = static_cast<int16_t>(right - left), dy = static_cast<int16_t>(bottom - top);
        gx[x] = dx;
        gy[x] = dy;
        magnitude[x] = static_cast<int16_t>((dx < 0 ? -dx : dx) + (dy < 0 ? -dy : dy));
    }
}

}  // namespace

void GPTR_DESCRIBE(const Image& image, int64_t stride, int low, int high, const Fields& out) {
    const int64_t H = image.height, W = image.width, cells = W / stride, pitch = W + 2;
    std::vector<int16_t> grey(3 * pitch);
    // Magnitudes carry a border of zeros: nothing outside the image exceeds a pixel inside.
    std::vector<int16_t> gx(H * W), gy(H * W), magnitude((H + 2) * pitch, 0);
    std::vector<uint32_t> first(3 * W), second(3 * W), third(3 * W);
    std::vector<int32_t> xx(W), yy(W), xy(W);

    const auto fill = [&](int64_t y) {
        const int64_t clamped = std::clamp<int64_t>(y, 0, H - 1);
        grey_row(image.rgb + clamped * W * 3, W, grey.data() + ((y + 3) % 3) * pitch);
    };
    fill(-1);
    fill(0);
    for (int64_t y = 0; y < H; ++y) {
        if (y % stride == 0) {
            std::fill(first.begin(), first.end(), 0);
            std::fill(second.begin(), second.end(), 0);
            std::fill(third.begin(), third.end(), 0);
            std::fill(xx.begin(), xx.end(), 0);
            std::fill(yy.begin(), yy.end(), 0);
            std::fill(xy.begin(), xy.end(), 0);
        }
        fill(y + 1);
        int16_t* const dx = gx.data() + y * W;
        int16_t* const dy = gy.data() + y * W;
        sobel_row(grey.data() + ((y + 2) % 3) * pitch, grey.data() + (y % 3) * pitch,
                  grey.data() + ((y + 1) % 3) * pitch, W, dx, dy, magnitude.data() + (y + 1) * pitch + 1);
        const uint8_t* const row = image.rgb + y * W * 3;
        uint32_t *const f = first.data(), *const s = second.data(), *const t = third.data();
        for (int64_t i = 0; i < 3 * W; ++i) {
            const uint32_t v = row[i];
            f[i] += v;
            s[i] += v * v;
            t[i] += v * v * v;
        }
        int32_t *const a = xx.data(), *const b = yy.data(), *const c = xy.data();
        for (int64_t x = 0; x < W; ++x) {
            a[x] += dx[x] * dx[x];
            b[x] += dy[x] * dy[x];
            c[x] += dx[x] * dy[x];
        }
        if ((y + 1) % stride) continue;
        const double n = static_cast<double>(stride * stride);
        for (int64_t cell = 0; cell < cells; ++cell) {
            const int64_t node = (y / stride) * cells + cell;
            for (int k = 0; k < 3; ++k) {
                uint64_t s1 = 0, s2 = 0, s3 = 0;
                for (int64_t x = cell * stride; x < (cell + 1) * stride; ++x) {
                    s1 += f[3 * x + k];
                    s2 += s[3 * x + k];
                    s3 += t[3 * x + k];
                }
                const double mean = static_cast<double>(s1) / n;
                const double square = static_cast<double>(s2) / n;
                const double variance = std::max(square - mean * mean, 0.0);
                const double cube = static_cast<double>(s3) / n - 3.0 * mean * square + 2.0 * mean * mean * mean;
                float* const colour = out.colour + node * 9 + k;
                colour[0] = static_cast<float>(mean / 255.0);
                colour[3] = static_cast<float>(std::sqrt(variance) / 255.0);
                // below 1e-6 the third moment is rounding, whose cube root would not be small
                colour[6] = static_cast<float>(std::fabs(cube) < 1e-6 ? 0.0 : std::cbrt(cube) / 255.0);
            }
            int64_t j1 = 0, j2 = 0, j3 = 0;
            for (int64_t x = cell * stride; x < (cell + 1) * stride; ++x) {
                j1 += a[x];
                j2 += b[x];
                j3 += c[x];
            }
            const double difference = static_cast<double>(j1 - j2), twice = 2.0 * static_cast<double>(j3);
            const double length = std::sqrt(difference * difference + twice * twice);
            const double trace = static_cast<double>(j1 + j2);
            float* const tensor = out.tensor + node * 3;
            tensor[0] = static_cast<float>(length > 0 ? difference / length : 1.0);
            tensor[1] = static_cast<float>(length > 0 ? twice / length : 0.0);
            tensor[2] = static_cast<float>(trace > 0 ? length / trace : 0.0);
        }
    }

    // Non-maximum suppression along the gradient, then hysteresis from the strong pixels:
    // the order of comparisons is OpenCV's, so that the map is OpenCV's bit for bit.
    std::fill(out.edges, out.edges + H * W, uint8_t{0});
    std::vector<int64_t> strong;
    for (int64_t y = 0; y < H; ++y) {
        const int16_t* const m = magnitude.data() + (y + 1) * pitch + 1;
        for (int64_t x = 0; x < W; ++x) {
            const int value = m[x];
            if (value <= low) continue;
            const int32_t dx = gx[y * W + x], dy = gy[y * W + x];
            const int64_t ax = std::abs(dx), ay = static_cast<int64_t>(std::abs(dy)) << 15;
            const int64_t tg22 = ax * TG22;
            bool keep;
            if (ay < tg22) {
                keep = value > m[x - 1] && value >= m[x + 1];
            } else if (ay > tg22 + (ax << 16)) {
                keep = value > m[x - pitch] && value >= m[x + pitch];
            } else {
                const int64_t s = (dx ^ dy) < 0 ? -1 : 1;
                keep = value > m[x - pitch - s] && value > m[x + pitch + s];
            }
            if (!keep) continue;
            out.edges[y * W + x] = value > high ? 1 : 2;
            if (value > high) strong.push_back(y * W + x);
        }
    }
    while (!strong.empty()) {
        const int64_t at = strong.back();
        strong.pop_back();
        const int64_t y = at / W, x = at % W;
        for (int64_t v = std::max<int64_t>(y - 1, 0); v <= std::min(y + 1, H - 1); ++v)
            for (int64_t u = std::max<int64_t>(x - 1, 0); u <= std::min(x + 1, W - 1); ++u)
                if (out.edges[v * W + u] == 2) {
                    out.edges[v * W + u] = 1;
                    strong.push_back(v * W + u);
                }
    }
    for (int64_t i = 0; i < H * W; ++i) out.edges[i] = out.edges[i] == 1;

    for (int64_t cy = 0; cy < H / stride; ++cy)
        for (int64_t cx = 0; cx < cells; ++cx) {
            uint8_t* const border = out.borders + (cy * cells + cx) * 4 * stride;
            const uint8_t* const cell = out.edges + cy * stride * W + cx * stride;
            for (int64_t i = 0; i < stride; ++i) {
                border[i] = cell[i];
                border[stride + i] = cell[(stride - 1) * W + i];
                border[2 * stride + i] = cell[i * W];
                border[3 * stride + i] = cell[i * W + stride - 1];
            }
        }
}

}  // namespace gptr
