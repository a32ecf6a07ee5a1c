// What the kernels see of an image: a band of interleaved RGB rows of a taller image.
#pragma once

#include <cstddef>
#include <cstdint>

namespace noiser {

enum class Sample : int { u8 = 0, u16 = 1, f32 = 2, f64 = 3 };

struct ImageView {
    const void* data;       // first row of the band
    Sample sample;
    std::int64_t first;     // its row number in the whole image
    std::int64_t rows;      // rows in the band
    std::int64_t height;    // of the whole image
    std::int64_t width;

    const void* row(std::int64_t y) const {
        static constexpr std::size_t size[] = {1, 2, 4, 8};
        return static_cast<const char*>(data) +
               static_cast<std::size_t>((y - first) * width) * 3 * size[static_cast<int>(sample)];
    }
};

// Row or column that stands at a position up to two outside [0, length): mirrored about the
// outermost pixel, or that pixel itself where the side has length one.
inline std::int64_t mirror(std::int64_t position, std::int64_t length) {
    if (position < 0) position = -position;
    if (position >= length) position = 2 * (length - 1) - position;
    if (position < 0) position = 0;
    return position < length ? position : length - 1;
}

}  // namespace noiser
