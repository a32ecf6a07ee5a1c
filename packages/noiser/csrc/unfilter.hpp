// Row filters of PNG (section 9 of the specification), undone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

namespace noiser {

// lines: rows of 1 + bytes, the first byte names the filter. Returns false for an unknown filter.
inline bool unfilter(const std::uint8_t* lines, std::size_t rows, std::size_t bytes,
                     std::size_t pixel, std::uint8_t* out) {
    const std::vector<std::uint8_t> none(bytes, 0);
    const std::uint8_t* above = none.data();
    for (std::size_t y = 0; y < rows; ++y, lines += bytes + 1) {
        std::uint8_t* to = out + y * bytes;
        const std::uint8_t* from = lines + 1;
        const int filter = lines[0];
        if (filter > 4) return false;
        for (std::size_t x = 0; x < bytes; ++x) {
            const int left = x >= pixel ? to[x - pixel] : 0, up = above[x];
            const int corner = x >= pixel ? above[x - pixel] : 0;
            int guess = 0;
            if (filter == 1) {
                guess = left;
            } else if (filter == 2) {
                guess = up;
            } else if (filter == 3) {
                guess = (left + up) / 2;
            } else if (filter == 4) {
                const int a = std::abs(up - corner), b = std::abs(left - corner);
                const int c = std::abs(left + up - 2 * corner);
                guess = a <= b && a <= c ? left : b <= c ? up : corner;
            }
            to[x] = static_cast<std::uint8_t>(from[x] + guess);
        }
        above = to;
    }
    return true;
}

}  // namespace noiser
