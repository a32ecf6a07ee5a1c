// Loss and gradient of one noise image; src/noiser/training.py is the reference.
//
// Planes are zero-padded squares whose rows are stored end to end, with a stride of a whole number
// of vectors, so that a shift of a plane is a shift of the pointer. All sums run in one fixed order
// on one thread: one seed gives one model.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels.hpp"
#include "simd.hpp"

namespace {

// Phi and its density, single precision, within 4e-7 (Abramowitz and Stegun 7.1.26).
inline void normal_distribution(Vec z, Vec& distribution, Vec& density) {
    const Vec magnitude = upper(z, -z);
    const Vec x = upper(-0.5f * z * z, splat(-80.0f));
    const Vec shifted = x * 1.4426950408889634f + 12582912.0f;
    const Vec n = shifted - 12582912.0f;
    const Vec f = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec e = splat(1.0f / 5040);
    e = e * f + 1.0f / 720;
    e = e * f + 1.0f / 120;
    e = e * f + 1.0f / 24;
    e = e * f + 1.0f / 6;
    e = e * f + 0.5f;
    e = e * f + 1.0f;
    e = e * f + 1.0f;
    IntVec bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4B400000 + 127) << 23;
    Vec scale;
    std::memcpy(&scale, &bits, sizeof scale);
    const Vec gauss = e * scale;
    const Vec t = 1.0f / (1.0f + 0.23164189f * magnitude);
    const Vec tail = 0.5f * gauss * t *
                     (0.254829592f +
                      t * (-0.284496736f +
                           t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    distribution = z < splat(0.0f) ? tail : 1.0f - tail;
    density = gauss * 0.3989422804f;
}

struct Plane {
    int size, stride;
    std::size_t length;  // of one padded plane

    explicit Plane(int n)
        : size(n),
          stride((n + 2 + LANES - 1) / LANES * LANES),
          length(static_cast<std::size_t>(n + 2) * stride + 2 * LANES) {}
    // Rows without the border; a vector of zeros stands before and after each plane.
    std::size_t begin() const { return static_cast<std::size_t>(LANES) + stride; }
    std::size_t end() const { return begin() + static_cast<std::size_t>(size) * stride; }
    // First pixel of a plane without its border.
    std::size_t inside() const { return begin() + 1; }
};

inline float sum_of(Vec v) {
    float total = 0;
    for (int i = 0; i < LANES; ++i) total += v[i];
    return total;
}

// Buffers of a training run; the planes have zero borders and zero tails throughout.
struct Trainer {
    Plane plane;
    int channels;
    std::vector<float> x, z, a, slope, y, grad_y, mask;

    Trainer(int size, int hidden)
        : plane(size),
          channels(hidden),
          x(3 * plane.length),
          z(hidden * plane.length),
          a(hidden * plane.length),
          slope(hidden * plane.length),
          y(3 * plane.length),
          grad_y(3 * plane.length),
          mask(plane.length) {
        for (int r = 0; r < size; ++r)
            std::fill_n(&mask[plane.inside() + static_cast<std::size_t>(r) * plane.stride], size,
                        1.0f);
    }
};

// OUTPUTS planes of V vectors at one place; see convolve.
template <int OUTPUTS, int V>
inline void convolve_block(const Plane& plane, const float* from, int inputs, const float* weight,
                           std::ptrdiff_t output_step, std::ptrdiff_t input_step, bool flipped,
                           std::size_t at, float* to) {
    Vec acc[OUTPUTS][V] = {};
    for (int i = 0; i < inputs; ++i)
        for (int tap = 0; tap < 9; ++tap) {
            const std::ptrdiff_t shift = (tap / 3 - 1) * plane.stride + tap % 3 - 1;
            const float* p = from + i * plane.length + at + (flipped ? -shift : shift);
            Vec in[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) in[v] = load(p + v * LANES);
#pragma GCC unroll 3
            for (int k = 0; k < OUTPUTS; ++k) {
                const Vec w = splat(weight[k * output_step + i * input_step + tap]);
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) acc[k][v] += w * in[v];
            }
        }
#pragma GCC unroll 3
    for (int k = 0; k < OUTPUTS; ++k)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(to + k * plane.length + at + v * LANES, acc[k][v]);
}

template <int OUTPUTS>
void convolve_outputs(const Plane& plane, const float* from, int inputs, const float* weight,
                      std::ptrdiff_t output_step, std::ptrdiff_t input_step, bool flipped,
                      float* to) {
    std::size_t at = plane.begin();
    for (; at + 4 * LANES <= plane.end(); at += 4 * LANES)
        convolve_block<OUTPUTS, 4>(plane, from, inputs, weight, output_step, input_step, flipped,
                                   at, to);
    for (; at < plane.end(); at += LANES)
        convolve_block<OUTPUTS, 1>(plane, from, inputs, weight, output_step, input_step, flipped,
                                   at, to);
}

// to[o] = sum over i and taps of weight[o][i][tap] times from[i], shifted. Flipped, the shifts are
// the opposite and the weights those of the layer whose gradient goes back: weight[i][o][tap].
// Columns beyond the square hold what the mask removes.
void convolve(const Plane& plane, const float* from, int inputs, const float* weight, int outputs,
              float* to, bool flipped) {
    const std::ptrdiff_t output_step = flipped ? 9 : 9 * inputs;
    const std::ptrdiff_t input_step = flipped ? 9 * outputs : 9;
    int o = 0;
    for (; o + 3 <= outputs; o += 3)
        convolve_outputs<3>(plane, from, inputs, weight + o * output_step, output_step, input_step,
                            flipped, to + o * plane.length);
    for (; o < outputs; ++o)
        convolve_outputs<1>(plane, from, inputs, weight + o * output_step, output_step, input_step,
                            flipped, to + o * plane.length);
}

template <int OUTPUTS>
void correlate_outputs(const Plane& plane, const float* grad, const float* from, int inputs,
                       float* gradient) {
    for (int i = 0; i < inputs; ++i)
        for (int row = 0; row < 3; ++row) {
            Vec acc[OUTPUTS][3] = {};
            const float* p = from + i * plane.length + (row - 1) * plane.stride - 1;
            for (std::size_t at = plane.begin(); at < plane.end(); at += LANES) {
                const Vec in[3] = {load(p + at), load(p + at + 1), load(p + at + 2)};
#pragma GCC unroll 3
                for (int k = 0; k < OUTPUTS; ++k) {
                    const Vec g = load(grad + k * plane.length + at);
#pragma GCC unroll 3
                    for (int c = 0; c < 3; ++c) acc[k][c] += g * in[c];
                }
            }
            for (int k = 0; k < OUTPUTS; ++k)
                for (int c = 0; c < 3; ++c)
                    gradient[(k * inputs + i) * 9 + row * 3 + c] = sum_of(acc[k][c]);
        }
}

// gradient[o][i][tap] = sum over pixels of grad[o] times from[i], shifted.
void correlate(const Plane& plane, const float* grad, int outputs, const float* from, int inputs,
               float* gradient) {
    int o = 0;
    for (; o + 3 <= outputs; o += 3)
        correlate_outputs<3>(plane, grad + o * plane.length, from, inputs,
                             gradient + o * inputs * 9);
    for (; o < outputs; ++o)
        correlate_outputs<1>(plane, grad + o * plane.length, from, inputs,
                             gradient + o * inputs * 9);
}

// Writes the gradients in the order conv1 weight, conv2 weight, conv2 bias; losses: L1, TV.
inline void training_step(Trainer& t, const float* noise, const float* conv1, const float* conv2,
                   const float* bias2, float tv_weight, float* grad1, float* grad2,
                   float* grad_bias2, double losses[2]) {
    const Plane& plane = t.plane;
    const int n = plane.size, stride = plane.stride;
    const std::size_t begin = plane.begin(), end = plane.end();
    const float* mask = t.mask.data();
    for (int c = 0; c < 3; ++c)
        for (int r = 0; r < n; ++r)
            std::copy_n(noise + (c * n + r) * n, n,
                        &t.x[c * plane.length + plane.inside() + static_cast<std::size_t>(r) * stride]);

    convolve(plane, t.x.data(), 3, conv1, t.channels, t.z.data(), false);
    const float pixels = static_cast<float>(n) * n;
    std::vector<float> inverse(t.channels);
    for (int c = 0; c < t.channels; ++c) {
        float* z = &t.z[c * plane.length];
        Vec sum = {}, square = {};
        for (std::size_t at = begin; at < end; at += LANES) sum += load(z + at) * load(mask + at);
        const float mean = sum_of(sum) / pixels;
        for (std::size_t at = begin; at < end; at += LANES) {
            const Vec v = (load(z + at) - mean) * load(mask + at);
            square += v * v;
        }
        inverse[c] = 1.0f / std::sqrt(sum_of(square) / pixels + 1e-5f);
        float *a = &t.a[c * plane.length], *slope = &t.slope[c * plane.length];
        for (std::size_t at = begin; at < end; at += LANES) {
            const Vec m = load(mask + at), v = (load(z + at) - mean) * inverse[c] * m;
            Vec distribution, density;
            normal_distribution(v, distribution, density);
            store(z + at, v);
            store(a + at, v * distribution);
            store(slope + at, (distribution + v * density) * m);
        }
    }
    convolve(plane, t.a.data(), t.channels, conv2, 3, t.y.data(), false);
    for (int c = 0; c < 3; ++c) {
        float* y = &t.y[c * plane.length];
        for (std::size_t at = begin; at < end; at += LANES)
            store(y + at, tanh(load(y + at) + bias2[c]) * load(mask + at));
    }
    const float unit = 1.0f / (3 * pixels);
    double l1 = 0, tv = 0;
    for (int c = 0; c < 3; ++c) {
        const float *y = &t.y[c * plane.length], *x = &t.x[c * plane.length];
        float* g = &t.grad_y[c * plane.length];
        double bias = 0;
        for (int r = 0; r < n; ++r) {
            const std::size_t row = plane.inside() + static_cast<std::size_t>(r) * stride;
            float row_l1 = 0, row_tv = 0, row_bias = 0;
            const bool above = r > 0, below = r + 1 < n;
            for (int k = 0; k < n; ++k) {
                const std::size_t at = row + k;
                const float d = y[at] - x[at];
                row_l1 += std::fabs(d);
                float smooth = 0;
                if (above) smooth += y[at] - y[at - stride];
                if (below) {
                    const float step = y[at + stride] - y[at];
                    smooth -= step;
                    row_tv += step * step;
                }
                if (k > 0) smooth += y[at] - y[at - 1];
                if (k + 1 < n) {
                    const float step = y[at + 1] - y[at];
                    smooth -= step;
                    row_tv += step * step;
                }
                const float sign = static_cast<float>((d > 0) - (d < 0));
                const float value = unit * (sign + 2 * tv_weight * smooth) * (1 - y[at] * y[at]);
                g[at] = value;
                row_bias += value;
            }
            l1 += row_l1;
            tv += row_tv;
            bias += row_bias;
        }
        grad_bias2[c] = static_cast<float>(bias);
    }
    losses[0] = l1 * unit;
    losses[1] = tv * unit;
    correlate(plane, t.grad_y.data(), 3, t.a.data(), t.channels, grad2);
    // The activations are no longer needed: their planes take the gradient.
    convolve(plane, t.grad_y.data(), 3, conv2, t.channels, t.a.data(), true);
    for (int c = 0; c < t.channels; ++c) {
        float* g = &t.a[c * plane.length];
        const float *z = &t.z[c * plane.length], *slope = &t.slope[c * plane.length];
        Vec sum = {}, product = {};
        for (std::size_t at = begin; at < end; at += LANES) {
            const Vec v = load(g + at) * load(slope + at);
            store(g + at, v);
            sum += v;
            product += v * load(z + at);
        }
        const float mean = sum_of(sum) / pixels, along = sum_of(product) / pixels;
        for (std::size_t at = begin; at < end; at += LANES)
            store(g + at, inverse[c] * (load(g + at) - mean - load(z + at) * along) * load(mask + at));
    }
    correlate(plane, t.a.data(), t.channels, t.x.data(), 3, grad1);
}

// One Adam step; `count` is the number of this step, from 1.
inline void adam(float* weight, float* first, float* second, const float* gradient, std::size_t n,
                 const noiser::Training& how, std::int64_t count) {
    const double correction = std::sqrt(1 - std::pow(how.beta2, static_cast<double>(count)));
    const auto rate = static_cast<float>(how.learning_rate * correction /
                                         (1 - std::pow(how.beta1, static_cast<double>(count))));
    const auto eps = static_cast<float>(1e-8 * correction);
    const auto keep1 = static_cast<float>(1 - how.beta1), keep2 = static_cast<float>(1 - how.beta2);
    for (std::size_t i = 0; i < n; ++i) {
        first[i] += keep1 * (gradient[i] - first[i]);
        second[i] += keep2 * (gradient[i] * gradient[i] - second[i]);
        weight[i] -= rate * first[i] / (std::sqrt(second[i]) + eps);
    }
}

void training_steps(const noiser::Training& how, const float* noise, std::int64_t steps,
                    std::int64_t done, float* const weights[3], float* const first[3],
                    float* const second[3], double* losses, float* const gradients[3]) {
    Trainer trainer(how.size, how.channels);
    const std::size_t sizes[3] = {static_cast<std::size_t>(27 * how.channels),
                                  static_cast<std::size_t>(27 * how.channels), 3};
    const std::size_t image = static_cast<std::size_t>(3) * how.size * how.size;
    for (std::int64_t step = 0; step < steps; ++step) {
        training_step(trainer, noise + static_cast<std::size_t>(step) * image, weights[0],
                      weights[1], weights[2], how.tv_weight, gradients[0], gradients[1],
                      gradients[2], losses + 2 * step);
        for (int k = 0; k < 3; ++k)
            adam(weights[k], first[k], second[k], gradients[k], sizes[k], how, done + step + 1);
    }
}

}  // namespace
