// Integer kernels; included by kernels_impl.h. Images and results are channels-last.

#if defined(__AVX512F__)
constexpr int kLane = 8;   // filters that one vector holds for the SAD
constexpr int kDots = 16;  // and for the dot products
#elif defined(__AVX2__)
constexpr int kLane = 4;
constexpr int kDots = 8;
#else
constexpr int kLane = 4;
constexpr int kDots = 4;
#endif
constexpr int kRows = 6;     // pixels in a tile
constexpr int kVectors = 4;  // vectors of filters in a tile
constexpr int64_t kPixels = 48;  // pixels per piece of work

// out[p][f] = sum over k of |rows[p][k] - weights[f][k]|; weights: [vector][k / 8][lane][8]
template <int rows_here>
inline void sad_tile(const uint8_t* rows, int64_t row, const uint8_t* weights, int64_t vectors, int64_t k8, int32_t* out, int64_t pitch) {
    for (int64_t first = 0; first < vectors; first += kVectors) {
        const int here = static_cast<int>(least(kVectors, vectors - first));
#if defined(__AVX512F__) || defined(__AVX2__)
#if defined(__AVX512F__)
        using Int = __m512i;
        const auto zero = _mm512_setzero_si512();
#else
        using Int = __m256i;
        const auto zero = _mm256_setzero_si256();
#endif
        Int acc[rows_here][kVectors];
        for (auto& line : acc)
            for (auto& a : line) a = zero;
        for (int64_t i = 0; i < k8; ++i) {
            Int w[kVectors];
            for (int v = 0; v < kVectors; ++v) {
                const uint8_t* from = weights + (((first + (v < here ? v : 0)) * k8 + i) * kLane) * 8;
#if defined(__AVX512F__)
                w[v] = _mm512_loadu_si512(from);
#else
                w[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
#endif
            }
            for (int p = 0; p < rows_here; ++p) {
                int64_t eight;
                memcpy(&eight, rows + p * row + i * 8, 8);
#if defined(__AVX512F__)
                const Int x = _mm512_set1_epi64(eight);
                for (int v = 0; v < kVectors; ++v) acc[p][v] = _mm512_add_epi64(acc[p][v], _mm512_sad_epu8(x, w[v]));
#else
                const Int x = _mm256_set1_epi64x(eight);
                for (int v = 0; v < kVectors; ++v) acc[p][v] = _mm256_add_epi64(acc[p][v], _mm256_sad_epu8(x, w[v]));
#endif
            }
        }
        for (int p = 0; p < rows_here; ++p)
            for (int v = 0; v < here; ++v) {
                int64_t sums[kLane];
                memcpy(sums, &acc[p][v], sizeof sums);
                for (int l = 0; l < kLane; ++l) out[p * pitch + (first + v) * kLane + l] = static_cast<int32_t>(sums[l]);
            }
#else
        for (int p = 0; p < rows_here; ++p)
            for (int v = 0; v < here; ++v)
                for (int l = 0; l < kLane; ++l) {
                    int32_t sum = 0;
                    for (int64_t i = 0; i < k8; ++i)
                        for (int b = 0; b < 8; ++b) {
                            const int d = rows[p * row + i * 8 + b] - weights[(((first + v) * k8 + i) * kLane + l) * 8 + b];
                            sum += d < 0 ? -d : d;
                        }
                    out[p * pitch + (first + v) * kLane + l] = sum;
                }
#endif
    }
}

// out[p][f] = sum over k of rows[p][k] * weights[f][k]; weights: [vector][k / 4][lane][4], int8
template <int rows_here>
inline void dot_tile(const uint8_t* rows, int64_t row, const int8_t* weights, int64_t vectors, int64_t k4, int32_t* out, int64_t pitch) {
    for (int64_t first = 0; first < vectors; first += kVectors) {
        const int here = static_cast<int>(least(kVectors, vectors - first));
        int32_t acc[rows_here][kVectors][kDots];
#if defined(__AVX512F__)
        __m512i sum[rows_here][kVectors];
        for (auto& line : sum)
            for (auto& a : line) a = _mm512_setzero_si512();
        for (int64_t i = 0; i < k4; ++i) {
            __m512i w[kVectors];
            for (int v = 0; v < kVectors; ++v)
                w[v] = _mm512_loadu_si512(weights + (((first + (v < here ? v : 0)) * k4 + i) * kDots) * 4);
            for (int p = 0; p < rows_here; ++p) {
                int32_t four;
                memcpy(&four, rows + p * row + i * 4, 4);
                const __m512i x = _mm512_set1_epi32(four);
                for (int v = 0; v < kVectors; ++v) sum[p][v] = _mm512_dpbusd_epi32(sum[p][v], x, w[v]);
            }
        }
        memcpy(acc, sum, sizeof acc);
#elif defined(__AVX2__)
        // vpmaddubsw saturates: widen to 16 bits, where the sum of two products fits in 32.
        __m256i sum[rows_here][kVectors];
        for (auto& line : sum)
            for (auto& a : line) a = _mm256_setzero_si256();
        const __m256i low = _mm256_set1_epi16(0x00ff);
        for (int64_t i = 0; i < k4; ++i)
            for (int v = 0; v < here; ++v) {
                const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + (((first + v) * k4 + i) * kDots) * 4));
                const __m256i odd = _mm256_srai_epi16(w, 8), even = _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8);
                for (int p = 0; p < rows_here; ++p) {
                    int32_t four;
                    memcpy(&four, rows + p * row + i * 4, 4);
                    const __m256i x = _mm256_set1_epi32(four);
                    const __m256i a = _mm256_madd_epi16(_mm256_and_si256(x, low), even);
                    const __m256i b = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), odd);
                    sum[p][v] = _mm256_add_epi32(sum[p][v], _mm256_add_epi32(a, b));
                }
            }
        memcpy(acc, sum, sizeof acc);
#else
        for (int p = 0; p < rows_here; ++p)
            for (int v = 0; v < here; ++v)
                for (int l = 0; l < kDots; ++l) {
                    int32_t sum = 0;
                    for (int64_t i = 0; i < k4; ++i)
                        for (int b = 0; b < 4; ++b)
                            sum += static_cast<int>(rows[p * row + i * 4 + b]) * weights[(((first + v) * k4 + i) * kDots + l) * 4 + b];
                    acc[p][v][l] = sum;
                }
#endif
        for (int p = 0; p < rows_here; ++p)
            for (int v = 0; v < here; ++v) memcpy(out + p * pitch + (first + v) * kDots, acc[p][v], sizeof acc[p][v]);
    }
}

// Calls put(f, i, byte) for the weights of a group; i counts the taps in the order (r, s, c).
template <class Put> void each_weight(const Shape& z, const int8_t* w, int64_t group, const Put& put) {
    const int64_t cg = z.channels / z.groups, fg = z.filters / z.groups, taps = z.kernel_h * z.kernel_w;
    const int8_t* from = w + group * fg * cg * taps;
    for (int64_t f = 0; f < fg; ++f)
        for (int64_t c = 0; c < cg; ++c)
            for (int64_t t = 0; t < taps; ++t) put(f, t * cg + c, *from++);
}

// Runs `tile` over the rows of a group, kRows at a time, and finishes each value with `finish(f, value)`.
template <class Tile, class Finish>
void integer_group(const Shape& z, const nasa::Bytes& bytes, int64_t group, int64_t row, int64_t pitch, int32_t* y, int threads,
                   const Tile& tile, const Finish& finish) {
    const int64_t pixels = z.batch * z.out_h * z.out_w, fg = z.filters / z.groups, cg = z.channels / z.groups;
    // A 1x1 convolution with unit stride and whole rows reads the image where it lies.
    const bool direct = z.kernel_h == 1 && z.kernel_w == 1 && z.stride_h == 1 && z.stride_w == 1 && z.pad_h == 0 &&
                        z.pad_w == 0 && z.groups == 1 && cg == row;
    parallel((pixels + kPixels - 1) / kPixels, threads, [&](int64_t which) {
        const int64_t first = which * kPixels, count = least(kPixels, pixels - first), tiled = up(count, kRows);
        const bool there = direct && tiled == count;
        uint8_t* copied = there ? nullptr : nasa::new_bytes(tiled * row);
        int32_t* out = reinterpret_cast<int32_t*>(nasa::new_floats(tiled * pitch));
        if (!there) {
            bytes.rows(z, group, first, count, row, copied);
            memset(copied + count * row, 0x80, static_cast<size_t>((tiled - count) * row));
        }
        const uint8_t* rows = there ? bytes.data + first * row : copied;
        for (int64_t p = 0; p < tiled; p += kRows) tile(rows + p * row, out + p * pitch);
        for (int64_t p = 0; p < count; ++p) {
            int32_t* to = y + (first + p) * z.filters + group * fg;
            for (int64_t f = 0; f < fg; ++f) to[f] = finish(f, out[p * pitch + f]);
        }
        nasa::release(copied);
        nasa::release(out);
    });
}

void sad_int8(const Shape& z, const int8_t* x, const int8_t* w, int32_t* y, int threads) {
    threads = worth(z, threads);
    const int64_t cg = z.channels / z.groups, fg = z.filters / z.groups, k = cg * z.kernel_h * z.kernel_w;
    const int64_t k8 = up(k, 8) / 8, vectors = (fg + kLane - 1) / kLane, pitch = vectors * kLane;
    const nasa::Bytes bytes(z, x);
    uint8_t* packed = nasa::new_bytes(vectors * k8 * kLane * 8);
    for (int64_t g = 0; g < z.groups; ++g) {
        memset(packed, 0x80, static_cast<size_t>(pitch * k8 * 8));
        each_weight(z, w, g, [&](int64_t f, int64_t i, int8_t value) {
            packed[((f / kLane * k8 + i / 8) * kLane + f % kLane) * 8 + i % 8] = static_cast<uint8_t>(value) ^ 0x80;
        });
        integer_group(
            z, bytes, g, k8 * 8, pitch, y, threads,
            [&](const uint8_t* rows, int32_t* out) { sad_tile<kRows>(rows, k8 * 8, packed, vectors, k8, out, pitch); },
            [](int64_t, int32_t value) { return -value; });
    }
    nasa::release(packed);
}

void conv_int8(const Shape& z, const int8_t* x, const int8_t* w, int32_t* y, int threads) {
    threads = worth(z, threads);
    const int64_t cg = z.channels / z.groups, fg = z.filters / z.groups, k = cg * z.kernel_h * z.kernel_w;
    const int64_t k8 = up(k, 8), vectors = (fg + kDots - 1) / kDots, pitch = vectors * kDots;
    const nasa::Bytes bytes(z, x);
    int8_t* packed = reinterpret_cast<int8_t*>(nasa::new_bytes(vectors * k8 * kDots));
    int32_t* offset = reinterpret_cast<int32_t*>(nasa::new_floats(pitch));
    for (int64_t g = 0; g < z.groups; ++g) {
        memset(packed, 0, static_cast<size_t>(pitch * k8));
        memset(offset, 0, sizeof(int32_t) * static_cast<size_t>(pitch));
        each_weight(z, w, g, [&](int64_t f, int64_t i, int8_t value) {
            packed[((f / kDots * (k8 / 4) + i / 4) * kDots + f % kDots) * 4 + i % 4] = value;
            offset[f] += 128 * value;  // what the 128 added to every input byte contributes
        });
        integer_group(
            z, bytes, g, k8, pitch, y, threads,
            [&](const uint8_t* rows, int32_t* out) { dot_tile<kRows>(rows, k8, packed, vectors, k8 / 4, out, pitch); },
            [&](int64_t f, int32_t value) { return value - offset[f]; });
    }
    nasa::release(packed);
    nasa::release(offset);
}
