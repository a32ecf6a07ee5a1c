#include "layout.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

namespace nasa {
namespace {

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

void* aligned(int64_t bytes) {
    void* p = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
    if (!p) throw std::bad_alloc();
    return p;
}

int64_t position(const std::vector<int64_t>& set, int64_t value) {
    return std::find(set.begin(), set.end(), value) - set.begin();
}

// The distinct stride phases that the taps of one axis read, in order of first use.
std::vector<int64_t> phases(int64_t kernel, int64_t dilation, int64_t stride) {
    std::vector<int64_t> set;
    for (int64_t r = 0; r < kernel; ++r)
        if (position(set, r * dilation % stride) == static_cast<int64_t>(set.size())) set.push_back(r * dilation % stride);
    return set;
}

}  // namespace

float* new_floats(int64_t count) { return static_cast<float*>(aligned((count + kSlack) * 4)); }

uint8_t* new_bytes(int64_t count) { return static_cast<uint8_t*>(aligned(count + 4 * kSlack)); }

Planes::Planes(const Shape& z, const float* x, int64_t group) {
    const int64_t cg = z.channels / z.groups;
    const auto ph = phases(z.kernel_h, z.dilation_h, z.stride_h), pw = phases(z.kernel_w, z.dilation_w, z.stride_w);
    rows = z.out_h + (z.kernel_h - 1) * z.dilation_h / z.stride_h;
    pitch = z.out_w + (z.kernel_w - 1) * z.dilation_w / z.stride_w;
    const int64_t plane = rows * pitch;
    per_channel = plane * static_cast<int64_t>(ph.size() * pw.size());
    per_image = per_channel * cg;
    data = new_floats(per_image * z.batch);
    std::memset(data, 0, sizeof(float) * static_cast<size_t>(per_image * z.batch + kSlack));
    float* to = data;
    for (int64_t n = 0; n < z.batch; ++n)
        for (int64_t c = 0; c < cg; ++c) {
            const float* image = x + (n * z.channels + group * cg + c) * z.height * z.width;
            for (int64_t a : ph)
                for (int64_t b : pw) {
                    for (int64_t i = 0; i < rows; ++i) {
                        const int64_t h = i * z.stride_h + a - z.pad_h;
                        if (h < 0 || h >= z.height) continue;
                        const int64_t shift = z.pad_w - b;  // column j reads image column j * stride - shift
                        const int64_t begin = std::max<int64_t>(0, -floor_div(-shift, z.stride_w));
                        const int64_t end = std::min(pitch, floor_div(z.width - 1 + shift, z.stride_w) + 1);
                        const float* from = image + h * z.width - shift;
                        float* row = to + i * pitch;
                        if (z.stride_w == 1 && end > begin)
                            std::memcpy(row + begin, from + begin, sizeof(float) * static_cast<size_t>(end - begin));
                        else
                            for (int64_t j = begin; j < end; ++j) row[j] = from[j * z.stride_w];
                    }
                    to += plane;
                }
        }
    taps = new int64_t[static_cast<size_t>(cg * z.kernel_h * z.kernel_w)];
    int64_t* tap = taps;
    for (int64_t c = 0; c < cg; ++c)
        for (int64_t r = 0; r < z.kernel_h; ++r)
            for (int64_t s = 0; s < z.kernel_w; ++s) {
                const int64_t i = r * z.dilation_h, j = s * z.dilation_w;
                const int64_t which = position(ph, i % z.stride_h) * static_cast<int64_t>(pw.size()) + position(pw, j % z.stride_w);
                *tap++ = c * per_channel + which * plane + i / z.stride_h * pitch + j / z.stride_w;
            }
}

Planes::~Planes() {
    release(data);
    delete[] taps;
}

Gradient::Gradient(const Shape& z, const float* gy, int64_t group) {
    const int64_t fg = z.filters / z.groups;
    // Class pixel a reaches output rows a + (first + pad - r * dilation) / stride.
    top = (z.kernel_h - 1) * z.dilation_h / z.stride_h + 1;
    left = (z.kernel_w - 1) * z.dilation_w / z.stride_w + 1;
    rows = top + std::max(z.out_h, (z.height - 1 + z.pad_h) / z.stride_h + 1);
    pitch = left + std::max(z.out_w, (z.width - 1 + z.pad_w) / z.stride_w + 1);
    per_filter = rows * pitch;
    per_image = per_filter * fg;
    data = new_floats(per_image * z.batch);
    std::memset(data, 0, sizeof(float) * static_cast<size_t>(per_image * z.batch + kSlack));
    for (int64_t n = 0; n < z.batch; ++n)
        for (int64_t f = 0; f < fg; ++f) {
            const float* from = gy + (n * z.filters + group * fg + f) * z.out_h * z.out_w;
            float* to = data + n * per_image + f * per_filter + top * pitch + left;
            for (int64_t i = 0; i < z.out_h; ++i)
                std::memcpy(to + i * pitch, from + i * z.out_w, sizeof(float) * static_cast<size_t>(z.out_w));
        }
}

Gradient::~Gradient() { release(data); }

InputClass::InputClass(const Shape& z, const Gradient& g, int64_t phase_h, int64_t phase_w)
    : first_h(phase_h), first_w(phase_w),
      count_h(phase_h < z.height ? (z.height - 1 - phase_h) / z.stride_h + 1 : 0),
      count_w(phase_w < z.width ? (z.width - 1 - phase_w) / z.stride_w + 1 : 0),
      taps(0), offset(nullptr), tap(nullptr) {
    std::vector<int64_t> offsets, indices;
    for (int64_t r = 0; r < z.kernel_h; ++r)
        for (int64_t s = 0; s < z.kernel_w; ++s) {
            const int64_t i = phase_h + z.pad_h - r * z.dilation_h, j = phase_w + z.pad_w - s * z.dilation_w;
            if (floor_div(i, z.stride_h) * z.stride_h != i || floor_div(j, z.stride_w) * z.stride_w != j) continue;
            offsets.push_back((g.top + floor_div(i, z.stride_h)) * g.pitch + g.left + floor_div(j, z.stride_w));
            indices.push_back(r * z.kernel_w + s);
        }
    taps = static_cast<int64_t>(offsets.size());
    offset = new int64_t[offsets.size() + 1];
    tap = new int64_t[offsets.size() + 1];
    std::copy(offsets.begin(), offsets.end(), offset);
    std::copy(indices.begin(), indices.end(), tap);
}

InputClass::~InputClass() {
    delete[] offset;
    delete[] tap;
}

void byte_rows(const Shape& z, const int8_t* x, int64_t group, int64_t first, int64_t count, int64_t row, uint8_t* out) {
    const int64_t cg = z.channels / z.groups, taps = z.kernel_w * cg;
    const bool joined = z.groups == 1 && z.dilation_w == 1;  // the taps of a kernel row are contiguous
    for (int64_t p = 0; p < count; ++p) {
        const int64_t at = first + p, ow = at % z.out_w, oh = at / z.out_w % z.out_h, n = at / (z.out_w * z.out_h);
        const int64_t w = ow * z.stride_w - z.pad_w;
        uint8_t* to = out + p * row;
        for (int64_t r = 0; r < z.kernel_h; ++r, to += taps) {
            const int64_t h = oh * z.stride_h - z.pad_h + r * z.dilation_h;
            if (h < 0 || h >= z.height) {
                std::memset(to, 0, static_cast<size_t>(taps));
                continue;
            }
            const int8_t* from = x + ((n * z.height + h) * z.width + w) * z.channels + group * cg;
            if (joined) {
                const int64_t begin = std::min(z.kernel_w, std::max<int64_t>(0, -w));
                const int64_t end = std::max(begin, std::min(z.kernel_w, z.width - w));
                if (begin > 0) std::memset(to, 0, static_cast<size_t>(begin * cg));
                std::memcpy(to + begin * cg, from + begin * cg, static_cast<size_t>((end - begin) * cg));
                if (end < z.kernel_w) std::memset(to + end * cg, 0, static_cast<size_t>((z.kernel_w - end) * cg));
                continue;
            }
            for (int64_t s = 0; s < z.kernel_w; ++s) {
                const int64_t i = w + s * z.dilation_w;
                if (i < 0 || i >= z.width)
                    std::memset(to + s * cg, 0, static_cast<size_t>(cg));
                else
                    std::memcpy(to + s * cg, from + s * z.dilation_w * z.channels, static_cast<size_t>(cg));
            }
        }
        if (row > z.kernel_h * taps) std::memset(to, 0, static_cast<size_t>(row - z.kernel_h * taps));
    }
}

}  // namespace nasa
