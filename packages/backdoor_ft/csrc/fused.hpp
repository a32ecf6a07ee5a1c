// The kernel itself; each translation unit compiles it for another instruction set.
#include <vector>

#include "kernels.hpp"

namespace {

void fused(const backdoor_ft::Batch& b, std::int64_t first, std::int64_t last) {
    const std::int64_t h = b.height, w = b.width, c = b.channels;
    std::vector<std::uint8_t> row(static_cast<std::size_t>(w));
    for (std::int64_t n = first; n < last; ++n) {
        const std::uint8_t* image = b.images + n * h * w * c;
        const std::int64_t down = b.draws[3 * n] - b.pad, right = b.draws[3 * n + 1] - b.pad;
        const bool mirrored = b.draws[3 * n + 2] != 0;
        const bool stamp = b.stamped[n] != 0;
        for (std::int64_t k = 0; k < c; ++k) {
            const float* table = b.table + 256 * k;
            float* out = b.out + (n * c + k) * h * w;
            for (std::int64_t y = 0; y < h; ++y, out += w) {
                const std::int64_t sy = y + down;
                const bool inside = sy >= 0 && sy < h;
                for (std::int64_t x = 0; x < w; ++x) {
                    const std::int64_t sx = (mirrored ? w - 1 - x : x) + right;
                    row[x] = inside && sx >= 0 && sx < w ? image[(sy * w + sx) * c + k] : 0;
                }
                if (stamp) {
                    const std::uint8_t* pattern = b.pattern + y * w * c + k;
                    const std::int32_t* alpha = b.alpha + y * w * c + k;
                    for (std::int64_t x = 0; x < w; ++x) {
                        const std::int32_t a = alpha[x * c];
                        row[x] = static_cast<std::uint8_t>(
                            (row[x] * (256 - a) + pattern[x * c] * a + 128) >> 8);
                    }
                }
                for (std::int64_t x = 0; x < w; ++x) out[x] = table[row[x]];
            }
        }
    }
}

}  // namespace
