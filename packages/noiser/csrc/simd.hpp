// One vector type of NOISER_LANES floats through the compiler's vector extensions: the same
// source becomes AVX-512, AVX2 or 128-bit code, depending on the flags of the including file.
#pragma once

#include <cstdint>
#include <cstring>

#ifndef NOISER_LANES
#error "the including file defines NOISER_LANES"
#endif

namespace {

constexpr int LANES = NOISER_LANES;
typedef float Vec __attribute__((vector_size(NOISER_LANES * 4), aligned(4), may_alias));
typedef std::int32_t IntVec __attribute__((vector_size(NOISER_LANES * 4)));

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
inline Vec splat(float x) { return x - Vec{}; }
inline Vec lower(Vec a, Vec b) { return a < b ? a : b; }
inline Vec upper(Vec a, Vec b) { return a > b ? a : b; }

// z Phi(z). Phi(z) - 1/2 = z P(2 z^2 / Z^2 - 1) on |z| <= Z = 4.75, constant beyond: weighted
// minimax fit of degree 10, absolute error of the result below 5e-6 for |z| < 6 in single
// precision (tests/test_native.py measures it).
inline Vec gelu(Vec z) {
    constexpr float Z = 4.75f;
    constexpr float c[11] = {0.148748296f,   -0.0736676264f, 0.0532352186f, -0.0405665635f,
                             0.0304022286f,  -0.0216583462f, 0.0134113757f, -0.0071524459f,
                             0.00500317419f, -0.00378082459f, 0.00128860525f};
    const Vec zc = upper(lower(z, splat(Z)), splat(-Z));
    const Vec t = zc * zc * (2.0f / (Z * Z)) - 1.0f;
    Vec p = splat(c[10]);
    for (int k = 9; k >= 0; --k) p = p * t + c[k];
    return z * (zc * p + 0.5f);
}

// 1 - 2 / (exp(2 x) + 1), with exp through 2^n and a polynomial; absolute error below 2e-7.
inline Vec tanh(Vec x) {
    x = upper(lower(x, splat(9.1f)), splat(-9.1f));
    const Vec y = x * 2.8853900817779268f;  // 2 / ln 2
    const Vec shifted = y + 12582912.0f;    // 1.5 * 2^23: rounds to an integer
    const Vec n = shifted - 12582912.0f;
    const Vec f = (y - n) * 0.6931471805599453f;
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
    return 1.0f - 2.0f / (e * scale + 1.0f);
}

}  // namespace
