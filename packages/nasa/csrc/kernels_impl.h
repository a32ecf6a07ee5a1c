// The kernels, written once over Vec and compiled once per instruction set.
#include <chrono>
#include <cstring>

#include "kernels.h"
#include "layout.h"
#include "simd.h"

namespace {

using nasa::Gradient;
using nasa::InputClass;
using nasa::Planes;
using nasa::Run;
using nasa::Shape;

constexpr int V = Vec::width;
#if defined(__AVX512F__)
constexpr int kVecs = 4;     // vectors of pixels in a forward tile
constexpr int kGradVecs = 2; // and in a tile of the input gradient
constexpr int kChannels = 6; // channels in that tile
#elif defined(__AVX2__)
constexpr int kVecs = 2;
constexpr int kGradVecs = 1;
constexpr int kChannels = 4;
#else
constexpr int kVecs = 2;
constexpr int kGradVecs = 2;
constexpr int kChannels = 4;
#endif
constexpr int kFilters = 6;  // filters in a forward tile: 24 accumulators of the 32 registers
constexpr int kPanel = V * kVecs;
constexpr int kGradPanel = V * kGradVecs;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// Threads worth waking for so many multiply-accumulates: a wake-up costs as much as some 10^5.
inline int worth(const Shape& z, int threads) {
    const double work = 1.0 * z.batch * z.filters * z.out_h * z.out_w * (z.channels / z.groups) * z.kernel_h * z.kernel_w;
    const int most = static_cast<int>(work / 1e6) + 1;
    return most < threads ? most : threads;
}

// Hands a callable to the pool without instantiating a standard template in this file.
template <class Body> void parallel(int64_t count, int threads, const Body& body) {
    nasa::parallel_for(
        count, threads, [](void* context, int64_t i) { (*static_cast<const Body*>(context))(i); },
        const_cast<Body*>(&body));
}

// Copies the runs of a panel; whole vectors, so that it may write up to V - 1 elements behind a run.
inline void copy_runs(const Run* runs, int count, const float* source, float* to) {
    for (int i = 0; i < count; ++i) {
        const float* from = source + runs[i].source;
        float* into = to + runs[i].at;
        for (int64_t j = 0; j < runs[i].length; j += V) Vec::load(from + j).store(into + j);
    }
}

#include "probe.h"

// ---- forward ------------------------------------------------------------------------------------

// How a tile accumulates. fma(1, m, acc) and acc + m are the same number; which one is faster depends on the ports
// that a processor gives to maxima, additions and multiplications.
enum class Sum { exact, add, fma };

// Least time of some runs of a formula of the probe.
inline double probe_time(int formula) {
    double best = 1e9;
    for (int i = 0; i < 5; ++i) {
        const auto start = std::chrono::steady_clock::now();
        probe(formula, 1000);
        const double spent = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        if (spent < best) best = spent;
    }
    return best;
}

// Measured once, in some 50 microseconds; a tenth more decides for the addition.
inline bool adds_faster() {
    static const bool faster = probe(2, 1) && probe_time(2) * 1.1 < probe_time(1);
    return faster;
}

// One tile: the first rows of kFilters filters by kPanel pixels. weights: [k][kFilters]; panel: [k][kPanel]. Row f goes to out[f]:
// bias[f] + pixel_sum - 2 * sum of maxima, or minus the sum of |x - w| where exact.
template <Sum sum, int rows>
inline void forward_tile(const float* panel, const float* weights, int64_t k, const float* bias, const Vec* pixel_sum, float* const* out) {
    Vec acc[rows][kVecs];
    for (auto& row : acc)
        for (auto& a : row) a = Vec::set(0.0f);
    const Vec one = Vec::set(1.0f);
    constexpr bool exact = sum == Sum::exact;
    for (int64_t i = 0; i < k; ++i) {
        Vec x[kVecs];
        for (int v = 0; v < kVecs; ++v) x[v] = Vec::load(panel + i * kPanel + v * V);
        for (int f = 0; f < rows; ++f) {
            const Vec w = Vec::set(weights[i * kFilters + f]);
            for (int v = 0; v < kVecs; ++v)
                if constexpr (sum == Sum::exact)
                    acc[f][v] = acc[f][v] + abs(x[v] - w);
                else if constexpr (sum == Sum::add)
                    acc[f][v] = acc[f][v] + max(x[v], w);
                else
                    acc[f][v] = fma(one, max(x[v], w), acc[f][v]);
        }
    }
    const Vec factor = Vec::set(exact ? -1.0f : -2.0f);
    for (int f = 0; f < rows; ++f) {
        const Vec base = Vec::set(exact ? 0.0f : bias[f]);
        for (int v = 0; v < kVecs; ++v) fma(factor, acc[f][v], exact ? base : base + pixel_sum[v]).store(out[f] + v * V);
    }
}

template <Sum sum>
void forward_tiles(int64_t filters, const float* panel, const float* weights, int64_t k, const float* bias, const Vec* pixel_sum, float* const* out) {
    if (filters > 4)
        forward_tile<sum, kFilters>(panel, weights, k, bias, pixel_sum, out);
    else if (filters > 2)
        forward_tile<sum, 4>(panel, weights, k, bias, pixel_sum, out);
    else
        forward_tile<sum, 2>(panel, weights, k, bias, pixel_sum, out);
}

void forward_group(const Shape& z, const float* x, const float* w, float* y, int64_t group, bool exact, int threads) {
    const int64_t cg = z.channels / z.groups, fg = z.filters / z.groups, k = cg * z.kernel_h * z.kernel_w;
    const int64_t area = z.out_h * z.out_w, pixels = z.batch * area, blocks = (fg + kFilters - 1) / kFilters;
    // A 1x1 convolution with unit stride reads the image where it lies.
    const bool direct = z.kernel_h == 1 && z.kernel_w == 1 && z.stride_h == 1 && z.stride_w == 1 &&
                        z.pad_h == 0 && z.pad_w == 0 && area % kPanel == 0;
    const Planes* planes = direct ? nullptr : new Planes(z, x, group);
    const bool adds = adds_faster();

    float* packed = nasa::new_floats(blocks * kFilters * k);
    float* sums = nasa::new_floats(blocks * kFilters);
    for (int64_t block = 0; block < blocks; ++block) {
        const float* from[kFilters];
        double sum[kFilters] = {};
        for (int64_t f = 0; f < kFilters; ++f)  // the last block repeats its last filter; nobody reads those sums
            from[f] = w + (group * fg + least(block * kFilters + f, fg - 1)) * k;
        float* to = packed + block * k * kFilters;
        for (int64_t i = 0; i < k; ++i)
            for (int64_t f = 0; f < kFilters; ++f) {
                to[i * kFilters + f] = from[f][i];
                sum[f] += from[f][i];
            }
        for (int64_t f = 0; f < kFilters; ++f) sums[block * kFilters + f] = static_cast<float>(sum[f]);
    }

    parallel((pixels + kPanel - 1) / kPanel, threads, [&](int64_t which) {
        const int64_t first = which * kPanel, count = least(kPanel, pixels - first);
        Run runs[kPanel];
        int run_count = 0;
        for (int64_t p = 0; p < count;) {
            const int64_t at = first + p, ow = at % z.out_w, oh = at / z.out_w % z.out_h, n = at / area;
            const int64_t length = least(z.out_w - ow, count - p);
            runs[run_count++] = {p, length, planes ? planes->pixel(n, oh, ow) : 0, n * z.filters * area + oh * z.out_w + ow};
            p += length;
        }
        float* buffer = nasa::new_floats(k * kPanel);
        Vec pixel_sum[kVecs];
        for (Vec& sum : pixel_sum) sum = Vec::set(0.0f);
        if (direct) {
            // Rows of an image lie a power of two apart, in few sets of the first cache: gather them once.
            const float* from = x + (first / area * z.channels + group * cg) * area + first % area;
            for (int64_t i = 0; i < k; ++i)
                for (int v = 0; v < kVecs; ++v) {
                    const Vec value = Vec::load(from + i * area + v * V);
                    value.store(buffer + i * kPanel + v * V);
                    pixel_sum[v] = pixel_sum[v] + value;
                }
        } else {
            if (count < kPanel) memset(buffer, 0, sizeof(float) * static_cast<size_t>(k * kPanel));
            for (int64_t i = 0; i < k; ++i) copy_runs(runs, run_count, planes->data + planes->taps[i], buffer + i * kPanel);
            for (int64_t i = 0; i < k; ++i)
                for (int v = 0; v < kVecs; ++v) pixel_sum[v] = pixel_sum[v] + Vec::load(buffer + i * kPanel + v * V);
        }
        // The pixels of one image lie in a row in its output.
        float* whole = count == kPanel && first % area + kPanel <= area ? y + first / area * z.filters * area + first % area : nullptr;
        alignas(64) float tile[kFilters * kPanel + V];
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t filter = block * kFilters, filters = least(kFilters, fg - filter);
            float* out[kFilters];
            for (int64_t f = 0; f < kFilters; ++f)
                out[f] = f < filters && whole ? whole + (group * fg + filter + f) * area : tile + f * kPanel;
            const float* weights = packed + filter * k;
            const auto tiles = exact ? forward_tiles<Sum::exact> : adds ? forward_tiles<Sum::add> : forward_tiles<Sum::fma>;
            tiles(filters, buffer, weights, k, sums + filter, pixel_sum, out);
            for (int64_t f = 0; f < filters && !whole; ++f)
                for (int r = 0; r < run_count; ++r)
                    memcpy(y + runs[r].target + (group * fg + filter + f) * area, out[f] + runs[r].at, sizeof(float) * static_cast<size_t>(runs[r].length));
        }
        nasa::release(buffer);
    });
    nasa::release(packed);
    nasa::release(sums);
    delete planes;
}

// Depthwise: one channel per group. The output is computed in rows of the planes' pitch.
void forward_depthwise(const Shape& z, const float* x, const float* w, float* y, int threads) {
    const int64_t fg = z.filters / z.groups, taps = z.kernel_h * z.kernel_w, area = z.out_h * z.out_w;
    parallel(z.batch * z.channels, threads, [&](int64_t which) {
        const int64_t n = which / z.channels, c = which % z.channels;
        Shape one = z;
        one.batch = one.channels = one.groups = 1;
        const Planes planes(one, x + which * z.height * z.width, 0);
        const int64_t span = (z.out_h - 1) * planes.pitch + z.out_w;
        float* line = nasa::new_floats(span);
        for (int64_t f = c * fg; f < (c + 1) * fg; ++f) {
            for (int64_t q = 0; q < span; q += V) {
                Vec acc = Vec::set(0.0f);
                for (int64_t t = 0; t < taps; ++t)
                    // reads past the last row stay inside the buffer's slack or its own zero rows
                    acc = acc - abs(Vec::load(planes.data + planes.taps[t] + q) - Vec::set(w[f * taps + t]));
                acc.store(line + q);
            }
            float* out = y + (n * z.filters + f) * area;
            for (int64_t i = 0; i < z.out_h; ++i)
                memcpy(out + i * z.out_w, line + i * planes.pitch, sizeof(float) * static_cast<size_t>(z.out_w));
        }
        nasa::release(line);
    });
}

void adder_forward(const Shape& z, const float* x, const float* w, float* y, bool exact, int threads) {
    threads = worth(z, threads);
    if (z.groups == z.channels) return forward_depthwise(z, x, w, y, threads);
    for (int64_t g = 0; g < z.groups; ++g) forward_group(z, x, w, y, g, exact, threads);
}

// ---- input gradient -----------------------------------------------------------------------------

#if defined(__AVX512F__)

// acc[c][p] += sum over f of clamp(w[f][c] - x[c][p], -1, 1) * g[f][p]
//
// vrangeps clamps in one instruction: the smaller magnitude with the sign of the first operand. The
// subtraction runs on the adder's ports for even channels, on the multiplier's for odd ones, so that
// the three instructions per element fill both.
inline void gradient_tile(const float* x, const float* g, const float* weights, int64_t filters, float* acc) {
    __m512 value[kChannels][kGradVecs], sum[kChannels][kGradVecs];
    const __m512 one = _mm512_set1_ps(1.0f);
    for (int c = 0; c < kChannels; ++c)
        for (int v = 0; v < kGradVecs; ++v) {
            value[c][v] = _mm512_loadu_ps(x + c * kGradPanel + v * V);
            sum[c][v] = _mm512_loadu_ps(acc + c * kGradPanel + v * V);
        }
    for (int64_t f = 0; f < filters; ++f) {
        __m512 gradient[kGradVecs];
        for (int v = 0; v < kGradVecs; ++v) gradient[v] = _mm512_loadu_ps(g + f * kGradPanel + v * V);
        for (int c = 0; c < kChannels; ++c) {
            const __m512 w = _mm512_set1_ps(weights[f * kChannels + c]);
            for (int v = 0; v < kGradVecs; ++v) {
                const __m512 d = c % 2 ? _mm512_fmsub_ps(w, one, value[c][v]) : _mm512_sub_ps(w, value[c][v]);
                sum[c][v] = _mm512_fmadd_ps(_mm512_range_ps(d, one, 0b0010), gradient[v], sum[c][v]);
            }
        }
    }
    for (int c = 0; c < kChannels; ++c)
        for (int v = 0; v < kGradVecs; ++v) _mm512_storeu_ps(acc + c * kGradPanel + v * V, sum[c][v]);
}

#else

// The same; clamp(w - x, -1, 1) = clamp(w, x - 1, x + 1) - x takes the subtraction out of the loop
// over the filters, and the sum of the gradients times x off the result.
inline void gradient_tile(const float* x, const float* g, const float* weights, int64_t filters, float* acc) {
    Vec low[kChannels][kGradVecs], high[kChannels][kGradVecs], sum[kChannels][kGradVecs], total[kGradVecs];
    const Vec one = Vec::set(1.0f), minus = Vec::set(-1.0f);
    for (auto& t : total) t = Vec::set(0.0f);
    for (int c = 0; c < kChannels; ++c)
        for (int v = 0; v < kGradVecs; ++v) {
            const Vec value = Vec::load(x + c * kGradPanel + v * V);
            low[c][v] = value - one;
            high[c][v] = value + one;
            sum[c][v] = Vec::load(acc + c * kGradPanel + v * V);
        }
    for (int64_t f = 0; f < filters; ++f)
        for (int v = 0; v < kGradVecs; ++v) {
            const Vec gradient = Vec::load(g + f * kGradPanel + v * V);
            total[v] = total[v] + gradient;
            for (int c = 0; c < kChannels; ++c)
                sum[c][v] = fma(min(max(Vec::set(weights[f * kChannels + c]), low[c][v]), high[c][v]), gradient, sum[c][v]);
        }
    for (int c = 0; c < kChannels; ++c)
        for (int v = 0; v < kGradVecs; ++v)
            fma(minus, Vec::load(x + c * kGradPanel + v * V) * total[v], sum[c][v]).store(acc + c * kGradPanel + v * V);
}

#endif

void gradient_group(const Shape& z, const float* x, const float* w, const float* gy, float* gx, int64_t group, int threads) {
    const int64_t cg = z.channels / z.groups, fg = z.filters / z.groups, taps = z.kernel_h * z.kernel_w;
    const int64_t padded = up(cg, kChannels), area = z.height * z.width;
    const Gradient gradient(z, gy, group);
    float* packed = nasa::new_floats(taps * padded * fg);  // [tap][c / kChannels][f][kChannels]
    for (int64_t first = 0; first < padded; first += kChannels)
        for (int64_t f = 0; f < fg; ++f)
            for (int64_t c = 0; c < kChannels; ++c) {
                const float* from = first + c < cg ? w + ((group * fg + f) * cg + first + c) * taps : nullptr;
                float* to = packed + first * fg + f * kChannels + c;
                for (int64_t t = 0; t < taps; ++t) to[t * padded * fg] = from ? from[t] : 0.0f;
            }

    for (int64_t phase = 0; phase < z.stride_h * z.stride_w; ++phase) {
        const InputClass cls(z, gradient, phase / z.stride_w, phase % z.stride_w);
        const int64_t per_image = cls.count_h * cls.count_w, pixels = z.batch * per_image;
        parallel((pixels + kGradPanel - 1) / kGradPanel, threads, [&](int64_t which) {
            const int64_t first = which * kGradPanel, count = least(kGradPanel, pixels - first);
            Run runs[kGradPanel];
            int run_count = 0;
            for (int64_t p = 0; p < count;) {
                const int64_t at = first + p, b = at % cls.count_w, a = at / cls.count_w % cls.count_h, n = at / per_image;
                const int64_t length = least(cls.count_w - b, count - p);
                runs[run_count++] = {p, length, gradient.pixel(n, a, b),
                                     (n * z.channels + group * cg) * area + (cls.first_h + a * z.stride_h) * z.width + cls.first_w + b * z.stride_w};
                p += length;
            }
            float* values = nasa::new_floats((2 * padded + fg) * kGradPanel);
            float* acc = values + padded * kGradPanel;
            float* panel = acc + padded * kGradPanel;
            memset(values, 0, sizeof(float) * static_cast<size_t>((2 * padded + fg) * kGradPanel));
            for (int64_t c = 0; c < cg; ++c)
                for (int r = 0; r < run_count; ++r)
                    for (int64_t j = 0; j < runs[r].length; ++j)
                        values[c * kGradPanel + runs[r].at + j] = x[runs[r].target + c * area + j * z.stride_w];
            for (int64_t t = 0; t < cls.taps; ++t) {
                for (int64_t f = 0; f < fg; ++f)
                    copy_runs(runs, run_count, gradient.data + cls.offset[t] + f * gradient.per_filter, panel + f * kGradPanel);
                const float* weights = packed + cls.tap[t] * padded * fg;
                for (int64_t c = 0; c < padded; c += kChannels)
                    gradient_tile(values + c * kGradPanel, panel, weights + c * fg, fg, acc + c * kGradPanel);
            }
            for (int64_t c = 0; c < cg; ++c)
                for (int r = 0; r < run_count; ++r)
                    for (int64_t j = 0; j < runs[r].length; ++j)
                        gx[runs[r].target + c * area + j * z.stride_w] = acc[c * kGradPanel + runs[r].at + j];
            nasa::release(values);
        });
    }
    nasa::release(packed);
}

void gradient_depthwise(const Shape& z, const float* x, const float* w, const float* gy, float* gx, int threads) {
    const int64_t fg = z.filters / z.groups, taps = z.kernel_h * z.kernel_w, area = z.height * z.width;
    parallel(z.batch * z.channels, threads, [&](int64_t which) {
        const int64_t n = which / z.channels, c = which % z.channels;
        Shape one = z;
        one.batch = one.channels = one.groups = 1;
        one.filters = fg;
        const Gradient gradient(one, gy + (n * z.filters + c * fg) * z.out_h * z.out_w, 0);
        for (int64_t phase = 0; phase < z.stride_h * z.stride_w; ++phase) {
            const InputClass cls(one, gradient, phase / z.stride_w, phase % z.stride_w);
            if (cls.count_h == 0 || cls.count_w == 0) continue;
            const int64_t span = (cls.count_h - 1) * gradient.pitch + cls.count_w;
            float* values = nasa::new_floats(2 * (span + V));
            float* line = values + span + V;
            memset(values, 0, sizeof(float) * static_cast<size_t>(span + V));
            const float* image = x + which * area + cls.first_h * z.width + cls.first_w;
            for (int64_t a = 0; a < cls.count_h; ++a)
                for (int64_t b = 0; b < cls.count_w; ++b)
                    values[a * gradient.pitch + b] = image[a * z.stride_h * z.width + b * z.stride_w];
            for (int64_t q = 0; q < span; q += V) {
                const Vec value = Vec::load(values + q), one_ = Vec::set(1.0f), minus = Vec::set(-1.0f);
                Vec sum = Vec::set(0.0f);
                for (int64_t f = 0; f < fg; ++f)
                    for (int64_t t = 0; t < cls.taps; ++t) {
                        const Vec weight = Vec::set(w[(c * fg + f) * taps + cls.tap[t]]);
                        const Vec g = Vec::load(gradient.data + f * gradient.per_filter + cls.offset[t] + q);
                        sum = fma(min(max(weight - value, minus), one_), g, sum);
                    }
                sum.store(line + q);
            }
            float* out = gx + which * area + cls.first_h * z.width + cls.first_w;
            for (int64_t a = 0; a < cls.count_h; ++a)
                for (int64_t b = 0; b < cls.count_w; ++b)
                    out[a * z.stride_h * z.width + b * z.stride_w] = line[a * gradient.pitch + b];
            nasa::release(values);
        }
    });
}

void adder_grad_input(const Shape& z, const float* x, const float* w, const float* gy, float* gx, int threads) {
    threads = worth(z, threads);
    if (z.groups == z.channels) return gradient_depthwise(z, x, w, gy, gx, threads);
    for (int64_t g = 0; g < z.groups; ++g) gradient_group(z, x, w, gy, gx, g, threads);
}

#include "kernels_int8.h"

}  // namespace

namespace nasa {
#define NASA_NAME_(a) kernels_##a
#define NASA_NAME(a) NASA_NAME_(a)
#define NASA_TEXT_(a) #a
#define NASA_TEXT(a) NASA_TEXT_(a)
extern const Kernels NASA_NAME(NASA_ISA);
const Kernels NASA_NAME(NASA_ISA) = {NASA_TEXT(NASA_ISA), adder_forward, adder_grad_input, sad_int8, conv_int8, probe};
}  // namespace nasa
