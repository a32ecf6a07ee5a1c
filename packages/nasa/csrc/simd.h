// One vector of floats, as wide as the instruction set this file is compiled for allows.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)

struct Vec {
    static constexpr int width = 16;
    __m512 v;
    static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static Vec set(float a) { return {_mm512_set1_ps(a)}; }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
    friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
    friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
    friend Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
    friend Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
    friend Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
    friend Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
};

#elif defined(__AVX2__)

struct Vec {
    static constexpr int width = 8;
    __m256 v;
    static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static Vec set(float a) { return {_mm256_set1_ps(a)}; }
    void store(float* p) const { _mm256_storeu_ps(p, v); }
    friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
    friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
    friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
    friend Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
    friend Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
    friend Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
    friend Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
};

#else

struct Vec {
    static constexpr int width = 4;
    float v[4];
    static Vec load(const float* p) {
        Vec r;
        std::memcpy(r.v, p, sizeof r.v);
        return r;
    }
    static Vec set(float a) { return {{a, a, a, a}}; }
    void store(float* p) const { std::memcpy(p, v, sizeof v); }
    template <class Op> static Vec map(Vec a, Vec b, Op op) {
        Vec r;
        for (int i = 0; i < width; ++i) r.v[i] = op(a.v[i], b.v[i]);
        return r;
    }
    friend Vec operator+(Vec a, Vec b) { return map(a, b, [](float x, float y) { return x + y; }); }
    friend Vec operator-(Vec a, Vec b) { return map(a, b, [](float x, float y) { return x - y; }); }
    friend Vec operator*(Vec a, Vec b) { return map(a, b, [](float x, float y) { return x * y; }); }
    friend Vec max(Vec a, Vec b) { return map(a, b, [](float x, float y) { return x > y ? x : y; }); }
    friend Vec min(Vec a, Vec b) { return map(a, b, [](float x, float y) { return x < y ? x : y; }); }
    friend Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
    friend Vec abs(Vec a) { return map(a, a, [](float x, float) { return std::fabs(x); }); }
};

#endif

}  // namespace
