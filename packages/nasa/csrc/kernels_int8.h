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

template <int n> struct Number {
    static constexpr int value = n;
};

// Calls strip(first, Number<n>) for stretches of n vectors of filters, kVectors each and what is left.
template <class Strip> inline void strips(int64_t vectors, const Strip& strip) {
    int64_t first = 0;
    for (; first + kVectors <= vectors; first += kVectors) strip(first, Number<kVectors>{});
    switch (vectors - first) {
        case 3: strip(first, Number<3>{}); break;
        case 2: strip(first, Number<2>{}); break;
        case 1: strip(first, Number<1>{}); break;
        default: break;
    }
}

// out[p][f] = -sum over k of |rows[p][k] - weights[f][k]| for `here` vectors of filters; weights:
// [vector][k / 8][lane][8]
template <int here>
inline void sad_strip(const uint8_t* rows, int64_t row, const uint8_t* weights, int64_t k8, int32_t* out, int64_t pitch) {
#if defined(__AVX512F__) || defined(__AVX2__)
#if defined(__AVX512F__)
    using Int = __m512i;
    const auto zero = _mm512_setzero_si512();
#else
    using Int = __m256i;
    const auto zero = _mm256_setzero_si256();
#endif
    Int acc[kRows][here];
    for (auto& line : acc)
        for (auto& a : line) a = zero;
    for (int64_t i = 0; i < k8; ++i) {
        Int w[here];
        for (int v = 0; v < here; ++v) {
            const uint8_t* from = weights + (v * k8 + i) * kLane * 8;
#if defined(__AVX512F__)
            w[v] = _mm512_loadu_si512(from);
#else
            w[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
#endif
        }
        for (int p = 0; p < kRows; ++p) {
            int64_t eight;
            memcpy(&eight, rows + p * row + i * 8, 8);
#if defined(__AVX512F__)
            const Int x = _mm512_set1_epi64(eight);
            for (int v = 0; v < here; ++v) acc[p][v] = _mm512_add_epi64(acc[p][v], _mm512_sad_epu8(x, w[v]));
#else
            const Int x = _mm256_set1_epi64x(eight);
            for (int v = 0; v < here; ++v) acc[p][v] = _mm256_add_epi64(acc[p][v], _mm256_sad_epu8(x, w[v]));
#endif
        }
    }
    for (int p = 0; p < kRows; ++p)
        for (int v = 0; v < here; ++v) {
            int32_t* to = out + p * pitch + v * kLane;
#if defined(__AVX512F__)
            const __m256i sums = _mm512_cvtepi64_epi32(_mm512_sub_epi64(zero, acc[p][v]));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), sums);
#else
            int64_t sums[kLane];
            memcpy(sums, &acc[p][v], sizeof sums);
            for (int l = 0; l < kLane; ++l) to[l] = -static_cast<int32_t>(sums[l]);
#endif
        }
#else
    for (int p = 0; p < kRows; ++p)
        for (int v = 0; v < here; ++v)
            for (int l = 0; l < kLane; ++l) {
                int32_t sum = 0;
                for (int64_t i = 0; i < k8; ++i)
                    for (int b = 0; b < 8; ++b) {
                        const int d = rows[p * row + i * 8 + b] - weights[((v * k8 + i) * kLane + l) * 8 + b];
                        sum -= d < 0 ? -d : d;
                    }
                out[p * pitch + v * kLane + l] = sum;
            }
#endif
}

// out[p][f] = start[f] + sum over k of rows[p][k] * weights[f][k] for `here` vectors of filters; weights:
// [vector][k / 4][lane][4], int8
template <int here>
inline void dot_strip(const uint8_t* rows, int64_t row, const int8_t* weights, const int32_t* start, int64_t k4, int32_t* out,
                      int64_t pitch) {
#if defined(__AVX512F__)
    __m512i sum[kRows][here];
#pragma GCC unroll 8
    for (int p = 0; p < kRows; ++p)
#pragma GCC unroll 8
        for (int v = 0; v < here; ++v) sum[p][v] = _mm512_loadu_si512(start + v * kDots);
    for (int64_t i = 0; i < k4; ++i) {
        __m512i w[here];
#pragma GCC unroll 8
        for (int v = 0; v < here; ++v) w[v] = _mm512_loadu_si512(weights + (v * k4 + i) * kDots * 4);
#pragma GCC unroll 8
        for (int p = 0; p < kRows; ++p) {
            int32_t four;
            memcpy(&four, rows + p * row + i * 4, 4);
            const __m512i x = _mm512_set1_epi32(four);
#pragma GCC unroll 8
            for (int v = 0; v < here; ++v) sum[p][v] = _mm512_dpbusd_epi32(sum[p][v], x, w[v]);
        }
    }
#pragma GCC unroll 8
    for (int p = 0; p < kRows; ++p)
#pragma GCC unroll 8
        for (int v = 0; v < here; ++v) _mm512_storeu_si512(out + p * pitch + v * kDots, sum[p][v]);
#elif defined(__AVX2__)
    // vpmaddubsw saturates: widen to 16 bits, where the sum of two products fits in 32.
    __m256i sum[kRows][here];
    for (int p = 0; p < kRows; ++p)
        for (int v = 0; v < here; ++v) sum[p][v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(start + v * kDots));
    const __m256i low = _mm256_set1_epi16(0x00ff);
    for (int64_t i = 0; i < k4; ++i)
        for (int v = 0; v < here; ++v) {
            const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + (v * k4 + i) * kDots * 4));
            const __m256i odd = _mm256_srai_epi16(w, 8), even = _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8);
            for (int p = 0; p < kRows; ++p) {
                int32_t four;
                memcpy(&four, rows + p * row + i * 4, 4);
                const __m256i x = _mm256_set1_epi32(four);
                const __m256i a = _mm256_madd_epi16(_mm256_and_si256(x, low), even);
                const __m256i b = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), odd);
                sum[p][v] = _mm256_add_epi32(sum[p][v], _mm256_add_epi32(a, b));
            }
        }
    for (int p = 0; p < kRows; ++p)
        for (int v = 0; v < here; ++v) _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + p * pitch + v * kDots), sum[p][v]);
#else
    for (int p = 0; p < kRows; ++p)
        for (int v = 0; v < here; ++v)
            for (int l = 0; l < kDots; ++l) {
                int32_t sum = start[v * kDots + l];
                for (int64_t i = 0; i < k4; ++i)
                    for (int b = 0; b < 4; ++b)
                        sum += static_cast<int>(rows[p * row + i * 4 + b]) * weights[((v * k4 + i) * kDots + l) * 4 + b];
                out[p * pitch + v * kDots + l] = sum;
            }
#endif
}

// Copies the weights of a group, which lie as [filter][r][s][c], into [vector][word][lane][width], `words` words
// per filter; where a filter ends before its last word, `packed` keeps what it holds. `flip` is xored to each.
template <int width, int lanes>
void pack_weights(const int8_t* w, int64_t filters, int64_t k, int64_t words, uint8_t flip, uint8_t* packed) {
    for (int64_t f = 0; f < filters; ++f) {
        const int8_t* from = w + f * k;
        uint8_t* to = packed + (f / lanes * words * lanes + f % lanes) * width;
        for (int64_t i = 0; i < k / width; ++i, to += lanes * width, from += width) {
            uint8_t word[width];
            memcpy(word, from, width);
            for (int b = 0; b < width; ++b) word[b] ^= flip;
            memcpy(to, word, width);
        }
        for (int64_t i = k / width * width; i < k; ++i) *to++ = static_cast<uint8_t>(*from++) ^ flip;
    }
}

inline void flip(uint8_t* bytes, int64_t count) {
    for (int64_t i = 0; i < count; ++i) bytes[i] ^= 0x80;
}

// Runs `tile` over the rows of a group, kRows at a time. Each value of a row is xored with 0x80, that is plus
// 128: this keeps distances and turns int8 into uint8.
template <class Tile>
void integer_group(const Shape& z, const int8_t* x, int64_t group, int64_t row, int64_t lanes, int32_t* y, int threads,
                   const Tile& tile) {
    const int64_t pixels = z.batch * z.out_h * z.out_w, fg = z.filters / z.groups, cg = z.channels / z.groups;
    const int64_t padded = up(fg, lanes);
    // a 1x1 convolution with unit stride and whole rows: the rows lie in the image one after another
    const bool direct = z.kernel_h == 1 && z.kernel_w == 1 && z.stride_h == 1 && z.stride_w == 1 && z.pad_h == 0 &&
                        z.pad_w == 0 && z.groups == 1 && cg == row;
    parallel((pixels + kPixels - 1) / kPixels, threads, [&](int64_t which) {
        const int64_t first = which * kPixels, count = least(kPixels, pixels - first), tiled = up(count, kRows);
        const bool lands = padded == fg && tiled == count;  // results are written in place
        uint8_t* rows = nasa::new_bytes(tiled * row);
        int32_t* own = lands ? nullptr : reinterpret_cast<int32_t*>(nasa::new_floats(tiled * padded));
        if (direct)
            memcpy(rows, x + first * row, static_cast<size_t>(count * row));
        else
            nasa::byte_rows(z, x, group, first, count, row, rows);
        flip(rows, count * row);
        memset(rows + count * row, 0x80, static_cast<size_t>((tiled - count) * row));
        int32_t* out = lands ? y + first * z.filters + group * fg : own;
        const int64_t pitch = lands ? z.filters : padded;
        for (int64_t p = 0; p < tiled; p += kRows) tile(rows + p * row, out + p * pitch, pitch);
        if (!lands)
            for (int64_t p = 0; p < count; ++p)
                memcpy(y + (first + p) * z.filters + group * fg, own + p * padded, sizeof(int32_t) * static_cast<size_t>(fg));
        nasa::release(rows);
        nasa::release(own);
    });
}

void sad_int8(const Shape& z, const int8_t* x, const int8_t* w, int32_t* y, int threads) {
    threads = worth(z, threads);
    const int64_t cg = z.channels / z.groups, fg = z.filters / z.groups, k = cg * z.kernel_h * z.kernel_w;
    const int64_t k8 = up(k, 8) / 8, vectors = (fg + kLane - 1) / kLane, bytes_packed = vectors * kLane * k8 * 8;
    uint8_t* packed = nasa::new_bytes(bytes_packed);
    for (int64_t g = 0; g < z.groups; ++g) {
        memset(packed, 0x80, static_cast<size_t>(bytes_packed));
        pack_weights<8, kLane>(w + g * fg * k, fg, k, k8, 0x80, packed);
        integer_group(z, x, g, k8 * 8, kLane, y, threads, [&](const uint8_t* rows, int32_t* out, int64_t pitch) {
            strips(vectors, [&](int64_t first, auto here) {
                sad_strip<here.value>(rows, k8 * 8, packed + first * k8 * kLane * 8, k8, out + first * kLane, pitch);
            });
        });
    }
    nasa::release(packed);
}

void conv_int8(const Shape& z, const int8_t* x, const int8_t* w, int32_t* y, int threads) {
    threads = worth(z, threads);
    const int64_t cg = z.channels / z.groups, fg = z.filters / z.groups, k = cg * z.kernel_h * z.kernel_w;
    const int64_t k8 = up(k, 8), vectors = (fg + kDots - 1) / kDots, pitch = vectors * kDots;
    uint8_t* packed = nasa::new_bytes(pitch * k8);
    int32_t* start = reinterpret_cast<int32_t*>(nasa::new_floats(pitch));
    for (int64_t g = 0; g < z.groups; ++g) {
        const int8_t* from = w + g * fg * k;
        memset(packed, 0, static_cast<size_t>(pitch * k8));
        memset(start, 0, sizeof(int32_t) * static_cast<size_t>(pitch));
        for (int64_t f = 0; f < fg; ++f) {
            int32_t sum = 0;
            for (int64_t i = 0; i < k; ++i) sum += from[f * k + i];
            start[f] = -128 * sum;  // what the 128 added to every input byte contributes
        }
        pack_weights<4, kDots>(from, fg, k, k8 / 4, 0, packed);
        integer_group(z, x, g, k8, kDots, y, threads, [&](const uint8_t* rows, int32_t* out, int64_t at) {
            strips(vectors, [&](int64_t first, auto here) {
                const int8_t* w4 = reinterpret_cast<const int8_t*>(packed) + first * k8 * kDots;
                dot_strip<here.value>(rows, k8, w4, start + first * kDots, k8 / 4, out + first * kDots, at);
            });
        });
    }
    nasa::release(packed);
    nasa::release(start);
}
