// The Python module: arrays in, arrays out, no state.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

#include "kernels.hpp"
#include "parallel.hpp"
#include "tone_measure.hpp"
#include "unfilter.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using Array = nb::ndarray<nb::c_contig, nb::device::cpu>;
using ReadOnly = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;

namespace {

template <typename A>
noiser::Sample sample_of(const A& array) {
    if (array.dtype() == nb::dtype<std::uint8_t>()) return noiser::Sample::u8;
    if (array.dtype() == nb::dtype<std::uint16_t>()) return noiser::Sample::u16;
    if (array.dtype() == nb::dtype<float>()) return noiser::Sample::f32;
    if (array.dtype() == nb::dtype<double>()) return noiser::Sample::f64;
    throw std::invalid_argument("samples must be uint8, uint16, float32 or float64");
}

void check(bool holds, const char* rule) {
    if (!holds) throw std::invalid_argument(rule);
}

noiser::ImageView view_of(const ReadOnly& band, std::int64_t first, std::int64_t height) {
    check(band.ndim() == 3 && band.shape(2) == 3, "band must be (rows, width, 3)");
    const auto rows = static_cast<std::int64_t>(band.shape(0));
    check(rows > 0 && band.shape(1) > 0, "band must not be empty");
    check(first >= 0 && first + rows <= height, "band must lie inside the image");
    return {band.data(), sample_of(band),
            first,       rows,
            height,      static_cast<std::int64_t>(band.shape(1))};
}

// The rows of the image that [begin, end) needs must be in the band.
void check_rows(const noiser::ImageView& image, std::int64_t begin, std::int64_t end,
                std::int64_t halo) {
    for (std::int64_t y = begin - halo; y < end + halo; ++y) {
        const std::int64_t row = noiser::mirror(y, image.height);
        check(row >= image.first && row < image.first + image.rows, "band misses rows");
    }
    check(begin >= image.first && begin < end && end <= image.first + image.rows,
          "rows must lie inside the band");
}

// Rows are handed out in pieces of this many; each piece repeats two hidden rows of its neighbour.
constexpr std::int64_t PIECE = 64;

void network_rows(const ReadOnly& band, std::int64_t first, std::int64_t height, std::int64_t begin,
                  std::int64_t end, const Array& out, const Floats& conv1_weight,
                  const Floats& conv1_bias, const Floats& conv2_weight, const Floats& conv2_bias,
                  const Floats& centre, float scale, bool zeros, const Floats& border, int threads,
                  const std::string& instructions) {
    const noiser::ImageView image = view_of(band, first, height);
    check_rows(image, begin, end, 2);
    const auto channels = conv1_bias.size();
    check(channels > 0 && conv1_weight.size() == 27 * channels &&
              conv2_weight.size() == 27 * channels && conv2_bias.size() == 3 &&
              centre.size() == 3 && border.size() == 3,
          "weights have wrong sizes");
    check(out.ndim() == 3 && out.shape(0) == static_cast<std::size_t>(end - begin) &&
              out.shape(1) == band.shape(1) && out.shape(2) == 3,
          "out must be (end - begin, width, 3)");
    check(threads >= 1, "threads must be at least 1");
    noiser::Network net{static_cast<int>(channels), conv1_weight.data(), conv1_bias.data(),
                        conv2_weight.data(),        conv2_bias.data(),   {},
                        scale,                      zeros,               {}};
    for (int c = 0; c < 3; ++c) {
        net.centre[c] = centre.data()[c];
        net.border[c] = border.data()[c];
    }
    const noiser::Kernels kernels = noiser::choose_kernels(instructions);
    const noiser::Sample out_sample = sample_of(out);
    static constexpr std::size_t size[] = {1, 2, 4, 8};
    const std::size_t row_bytes = static_cast<std::size_t>(image.width) * 3 * size[static_cast<int>(out_sample)];
    char* to = static_cast<char*>(out.data());
    nb::gil_scoped_release release;
    noiser::in_pieces(begin, end, PIECE, threads, [&](std::int64_t a, std::int64_t b) {
        kernels.network_rows(net, image, a, b, to + static_cast<std::size_t>(a - begin) * row_bytes,
                             out_sample);
    });
}

// Add the sums of the padded rows [begin, end) to products (27 x 27) and total (27).
template <typename Sum>
void accumulate(const Sum* sums, std::int64_t begin, std::int64_t end, std::int64_t height,
                Sum* products, Sum* total) {
    for (std::int64_t r = begin; r < end; ++r, sums += noiser::ROW_SUMS)
        for (int dy = 0; dy < 3; ++dy) {
            // Patch row dy of the image row y is the padded row y + dy - 1.
            const std::int64_t y = r + 1 - dy;
            if (y < 0 || y >= height) continue;
            for (int c = 0; c < 3; ++c)
                for (int dx = 0; dx < 3; ++dx) total[c * 9 + dy * 3 + dx] += sums[243 + c * 3 + dx];
            for (int lag = 0; lag + dy < 3; ++lag)
                for (int c = 0; c < 3; ++c)
                    for (int d = 0; d < 3; ++d) {
                        const Sum* from = sums + ((lag * 3 + c) * 3 + d) * 9;
                        for (int dx = 0; dx < 3; ++dx)
                            for (int ex = 0; ex < 3; ++ex) {
                                const int i = c * 9 + dy * 3 + dx;
                                const int j = d * 9 + (dy + lag) * 3 + ex;
                                products[i * 27 + j] += from[dx * 3 + ex];
                                if (lag > 0) products[j * 27 + i] += from[dx * 3 + ex];
                            }
                    }
        }
}

template <typename Sum, typename Rows>
void add_rows(const noiser::ImageView& image, bool zeros, std::int64_t begin, std::int64_t end,
              int threads, Rows rows, Sum* products, Sum* total) {
    // A piece of rows at a time, so that the row sums stay small; added in the order of the rows.
    constexpr std::int64_t BATCH = 512;
    std::vector<Sum> sums;
    for (std::int64_t from = begin; from < end; from += BATCH) {
        const std::int64_t until = std::min(from + BATCH, end);
        sums.resize(static_cast<std::size_t>((until - from) * noiser::ROW_SUMS));
        noiser::in_pieces(from, until, PIECE, threads, [&](std::int64_t a, std::int64_t b) {
            rows(image, zeros, a, b, &sums[static_cast<std::size_t>((a - from) * noiser::ROW_SUMS)]);
        });
        accumulate(sums.data(), from, until, image.height, products, total);
    }
}

void patch_sums(const ReadOnly& band, std::int64_t first, std::int64_t height, std::int64_t begin,
                std::int64_t end, const Array& products, const Array& total, bool zeros,
                int threads, const std::string& instructions) {
    const noiser::ImageView image = view_of(band, first, height);
    check(begin >= -1 && begin < end && end <= height + 1, "rows must lie in [-1, height]");
    for (std::int64_t r = begin; r < std::min(end + 2, height + 1); ++r) {
        const std::int64_t y = noiser::mirror(r, height);
        check((zeros && (r < 0 || r >= height)) ||
                  (y >= image.first && y < image.first + image.rows),
              "band misses rows");
    }
    const bool integer = image.sample == noiser::Sample::u8 || image.sample == noiser::Sample::u16;
    const auto wanted = integer ? nb::dtype<std::int64_t>() : nb::dtype<double>();
    check(products.dtype() == wanted && total.dtype() == wanted && products.size() == 729 &&
              total.size() == 27,
          "products and total must be 27 x 27 and 27 of int64 (integer images) or float64");
    check(image.width < (1 << 21), "rows must have below 2^21 pixels");
    check(threads >= 1, "threads must be at least 1");
    const noiser::Kernels kernels = noiser::choose_kernels(instructions);
    nb::gil_scoped_release release;
    if (integer)
        add_rows(image, zeros, begin, end, threads, kernels.integer_row_sums,
                 static_cast<std::int64_t*>(products.data()),
                 static_cast<std::int64_t*>(total.data()));
    else
        add_rows(image, zeros, begin, end, threads, kernels.float_row_sums,
                 static_cast<double*>(products.data()), static_cast<double*>(total.data()));
}

using Doubles = nb::ndarray<double, nb::c_contig, nb::device::cpu>;
using Counts = nb::ndarray<std::int64_t, nb::c_contig, nb::device::cpu>;

void check_tone_image(const ReadOnly& image) {
    check(image.ndim() == 3 && image.shape(2) == 3 && image.size() > 0,
          "image must be (height, width, 3)");
    const auto sample = sample_of(image);
    check(sample == noiser::Sample::u8 || sample == noiser::Sample::u16,
          "image must be uint8 or uint16");
}

void histograms(const ReadOnly& image, const Counts& counts, const Counts& luma) {
    check_tone_image(image);
    const std::int64_t levels = sample_of(image) == noiser::Sample::u8 ? 256 : 65536;
    check(counts.size() == static_cast<std::size_t>(3 * levels) &&
              luma.size() == noiser::LUMA_BINS,
          "counts must be (3, levels), luma (4096,)");
    const auto height = static_cast<std::int64_t>(image.shape(0));
    const auto width = static_cast<std::int64_t>(image.shape(1));
    nb::gil_scoped_release release;
    if (levels == 256)
        noiser::add_histograms(static_cast<const std::uint8_t*>(image.data()), width, 0, height,
                               levels, counts.data(), luma.data());
    else
        noiser::add_histograms(static_cast<const std::uint16_t*>(image.data()), width, 0, height,
                               levels, counts.data(), luma.data());
}

void block_means(const ReadOnly& image, const Floats& table, int factor, const Doubles& means,
                 const Doubles& sums, int threads) {
    check_tone_image(image);
    check(factor >= 1 && threads >= 1, "factor and threads must be at least 1");
    const bool bytes = sample_of(image) == noiser::Sample::u8;
    const auto height = static_cast<std::int64_t>(image.shape(0));
    const auto width = static_cast<std::int64_t>(image.shape(1));
    const std::int64_t rows = (height + factor - 1) / factor, columns = (width + factor - 1) / factor;
    check(table.size() == (bytes ? 256u : 65536u), "table must have one value for each level");
    check(means.size() == static_cast<std::size_t>(rows * columns) &&
              sums.size() == static_cast<std::size_t>(2 * rows),
          "means must be (block rows, block columns), sums (block rows, 2)");
    double *to = means.data(), *total = sums.data();
    nb::gil_scoped_release release;
    noiser::in_pieces(0, rows, 1, threads, [&](std::int64_t block, std::int64_t) {
        auto work = [&](auto* typed) {
            noiser::block_means(typed, height, width, table.data(), factor, block, columns,
                                to + block * columns, total + 2 * block);
        };
        if (bytes)
            work(static_cast<const std::uint8_t*>(image.data()));
        else
            work(static_cast<const std::uint16_t*>(image.data()));
    });
}

void tone_rows(const ReadOnly& image, const Floats& table, const Floats& channel_mean,
               const Floats& channel_scale, const Floats& numbers, const Floats& slope_map,
               const Floats& offset_map, int factor, const Array& out, int threads,
               const std::string& instructions) {
    check_tone_image(image);
    const noiser::Sample in = sample_of(image), to = sample_of(out);
    const auto height = static_cast<std::int64_t>(image.shape(0));
    const auto width = static_cast<std::int64_t>(image.shape(1));
    check(factor >= 1 && threads >= 1, "factor and threads must be at least 1");
    check(table.size() == (in == noiser::Sample::u8 ? 256u : 65536u),
          "table must have one value for each level");
    check(channel_mean.size() == 3 && channel_scale.size() == 3 && numbers.size() == 8,
          "numbers have wrong sizes");
    check(slope_map.ndim() == 2 && offset_map.ndim() == 2 &&
              slope_map.shape(0) == static_cast<std::size_t>((height + factor - 1) / factor) &&
              slope_map.shape(1) == static_cast<std::size_t>((width + factor - 1) / factor) &&
              offset_map.size() == slope_map.size(),
          "maps must be (block rows, block columns)");
    check(out.size() == image.size() && to != noiser::Sample::f64,
          "out must have the shape of the image, uint8, uint16 or float32");
    const float* n = numbers.data();
    noiser::Tone tone{};
    tone.table = table.data();
    for (int c = 0; c < 3; ++c) {
        tone.channel_mean[c] = channel_mean.data()[c];
        tone.channel_scale[c] = channel_scale.data()[c];
    }
    tone.luma_mean = n[0];
    tone.luma_scale = n[1];
    tone.chroma = n[2];
    tone.detail = n[3];
    tone.most_gain = n[4];
    tone.strength = n[5];
    tone.middle = n[6];
    tone.gain_floor = n[7];
    tone.slope_map = slope_map.data();
    tone.offset_map = offset_map.data();
    tone.block_rows = static_cast<std::int64_t>(slope_map.shape(0));
    tone.block_columns = static_cast<std::int64_t>(slope_map.shape(1));
    tone.factor = factor;
    static constexpr std::size_t size[] = {1, 2, 4, 8};
    const std::size_t row_bytes = static_cast<std::size_t>(width) * 3 * size[static_cast<int>(to)];
    const noiser::Kernels kernels = noiser::choose_kernels(instructions);
    char* target = static_cast<char*>(out.data());
    nb::gil_scoped_release release;
    noiser::in_pieces(0, height, PIECE, threads, [&](std::int64_t a, std::int64_t b) {
        kernels.tone_rows(tone, image.data(), in, width, a, b,
                          target + static_cast<std::size_t>(a) * row_bytes, to);
    });
}

using FloatsOut = nb::ndarray<float, nb::c_contig, nb::device::cpu>;

// Adam steps on noise images; returns the losses in `losses` and the last gradients.
void training_steps(const Floats& noise, std::int64_t done, const FloatsOut& conv1,
                    const FloatsOut& conv2, const FloatsOut& bias2, const FloatsOut& first,
                    const FloatsOut& second, const FloatsOut& gradients, const Doubles& losses,
                    float tv_weight, double learning_rate, double beta1, double beta2,
                    const std::string& instructions) {
    check(noise.ndim() == 4 && noise.shape(1) == 3 && noise.shape(2) == noise.shape(3) &&
              noise.shape(2) >= 2,
          "noise must be (steps, 3, size, size)");
    const std::size_t weights = conv1.size(), channels = weights / 27;
    check(channels > 0 && weights == 27 * channels && conv2.size() == weights && bias2.size() == 3,
          "weights have wrong sizes");
    check(first.size() == 2 * weights + 3 && second.size() == first.size() &&
              gradients.size() == first.size() && losses.size() == 2 * noise.shape(0),
          "moments, gradients or losses have wrong sizes");
    const noiser::Training how{static_cast<int>(noise.shape(2)), static_cast<int>(channels),
                               tv_weight, learning_rate, beta1, beta2};
    auto split = [&](float* all, float* to[3]) {
        to[0] = all;
        to[1] = all + weights;
        to[2] = all + 2 * weights;
    };
    float* w[3] = {conv1.data(), conv2.data(), bias2.data()};
    float *m[3], *v[3], *g[3];
    split(first.data(), m);
    split(second.data(), v);
    split(gradients.data(), g);
    const noiser::Kernels kernels = noiser::choose_kernels(instructions);
    const auto steps = static_cast<std::int64_t>(noise.shape(0));
    const float* images = noise.data();
    double* to = losses.data();
    nb::gil_scoped_release release;
    kernels.training_steps(how, images, steps, done, w, m, v, to, g);
}

using Bytes = nb::ndarray<const std::uint8_t, nb::c_contig, nb::device::cpu>;
using MutableBytes = nb::ndarray<std::uint8_t, nb::c_contig, nb::device::cpu>;

// out[p][c] = table[c][in[p][c]]
void lookup(const Bytes& image, const Bytes& table, const MutableBytes& out, int threads) {
    check(image.ndim() == 3 && image.shape(2) == 3 && out.size() == image.size(),
          "image must be (rows, width, 3), out of the same size");
    check(table.size() == 768, "table must be (3, 256)");
    check(threads >= 1, "threads must be at least 1");
    const std::uint8_t *from = image.data(), *t = table.data();
    std::uint8_t* to = out.data();
    const auto pixels = static_cast<std::int64_t>(image.size() / 3);
    nb::gil_scoped_release release;
    noiser::in_pieces(0, pixels, 1 << 18, threads, [&](std::int64_t a, std::int64_t b) {
        for (std::int64_t p = a; p < b; ++p) {
            to[3 * p] = t[from[3 * p]];
            to[3 * p + 1] = t[256 + from[3 * p + 1]];
            to[3 * p + 2] = t[512 + from[3 * p + 2]];
        }
    });
}

bool unfilter(const Bytes& lines, int pixel, const MutableBytes& out) {
    check(lines.ndim() == 2 && out.ndim() == 2 && out.shape(0) == lines.shape(0) &&
              out.shape(1) + 1 == lines.shape(1) && pixel >= 1 && pixel <= 8,
          "lines must be (rows, 1 + bytes), out (rows, bytes)");
    nb::gil_scoped_release release;
    return noiser::unfilter(lines.data(), out.shape(0), out.shape(1), static_cast<std::size_t>(pixel), out.data());
}

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "Compiled kernels; noiser.native is their Python face.";
    module.def(
        "instructions",
        [](const std::string& name) {
            return noiser::kernels_available(name)
                       ? std::string(noiser::choose_kernels(name).name)
                       : std::string();
        },
        "name"_a);
    module.def("network_rows", &network_rows, "band"_a, "first"_a, "height"_a, "begin"_a, "end"_a,
               "out"_a, "conv1_weight"_a, "conv1_bias"_a, "conv2_weight"_a, "conv2_bias"_a,
               "centre"_a, "scale"_a, "zeros"_a, "border"_a, "threads"_a, "instructions"_a);
    module.def("patch_sums", &patch_sums, "band"_a, "first"_a, "height"_a, "begin"_a, "end"_a,
               "products"_a, "total"_a, "zeros"_a, "threads"_a, "instructions"_a);
    module.def("histograms", &histograms, "image"_a, "counts"_a, "luma"_a);
    module.def("block_means", &block_means, "image"_a, "table"_a, "factor"_a, "means"_a, "sums"_a,
               "threads"_a);
    module.def("tone_rows", &tone_rows, "image"_a, "table"_a, "channel_mean"_a, "channel_scale"_a,
               "numbers"_a, "slope_map"_a, "offset_map"_a, "factor"_a, "out"_a, "threads"_a,
               "instructions"_a);
    module.def("training_steps", &training_steps, "noise"_a, "done"_a, "conv1"_a, "conv2"_a,
               "bias2"_a, "first"_a, "second"_a, "gradients"_a, "losses"_a, "tv_weight"_a,
               "learning_rate"_a, "beta1"_a, "beta2"_a, "instructions"_a);
    module.def("lookup", &lookup, "image"_a, "table"_a, "out"_a, "threads"_a);
    module.def("unfilter", &unfilter, "lines"_a, "pixel"_a, "out"_a);
}
