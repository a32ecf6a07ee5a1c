// CIDEr-D over word numbers (Vedantam et al., 2015), with the quirks of pycocoevalcap's code: a
// caption's length counts its bigrams, and a missing n-gram has document frequency 1.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <unordered_map>
#include <vector>

namespace p2c {

// Up to four word numbers, which begin at 1: an n-gram, exactly and not a hash of it.
struct Gram {
    std::uint64_t low = 0, high = 0;
    bool operator==(const Gram& other) const { return low == other.low && high == other.high; }
};

inline Gram gram_of(const std::uint32_t* words, int n) {
    Gram gram;
    gram.low = words[0];
    if (n > 1) gram.low |= static_cast<std::uint64_t>(words[1]) << 32;
    if (n > 2) gram.high = words[2];
    if (n > 3) gram.high |= static_cast<std::uint64_t>(words[3]) << 32;
    return gram;
}

struct GramHash {
    std::size_t operator()(const Gram& gram) const {
        std::uint64_t x = gram.low * 0x9E3779B97F4A7C15ull ^ (gram.high + 0x632BE59BD9B4E019ull) *
                                                                 0xC2B2AE3D27D4EB4Full;
        x ^= x >> 29;
        x *= 0xBF58476D1CE4E5B9ull;
        return static_cast<std::size_t>(x ^ (x >> 32));
    }
};

using Words = std::vector<std::uint32_t>;

// Counts of the n-grams of one order, in the order of their first place.
inline void count_grams(const Words& words, int n, std::vector<std::pair<Gram, int>>& counts) {
    counts.clear();
    for (std::size_t i = 0; i + n <= words.size(); ++i) {
        const Gram gram = gram_of(words.data() + i, n);
        // captions are short: a scan beats a hash table, except in a caption of pathological length
        auto found = std::find_if(counts.begin(), counts.end(),
                                  [&](const auto& entry) { return entry.first == gram; });
        if (found == counts.end())
            counts.emplace_back(gram, 1);
        else
            ++found->second;
    }
}

class Scorer {
  public:
    Scorer(double log_documents, double sigma) : log_documents_(log_documents), sigma_(sigma) {}

    void add_frequency(const Words& words, double count) {
        idf_[gram_of(words.data(), static_cast<int>(words.size()))] =
            log_documents_ - std::log(std::max(1.0, count));
    }

    // References of one more image; returns its number. All frequencies must be known before.
    std::size_t add_image(const std::vector<Words>& references) {
        images_.emplace_back();
        Image& image = images_.back();
        std::vector<std::pair<Gram, int>> counts;
        for (std::size_t r = 0; r < references.size(); ++r) {
            image.lengths.push_back(bigrams(references[r]));
            for (int n = 1; n <= 4; ++n) {
                count_grams(references[r], n, counts);
                double square = 0;
                for (const auto& [gram, count] : counts) {
                    const double weight = count * idf(gram);
                    square += weight * weight;
                }
                const double norm = std::sqrt(square);
                for (const auto& [gram, count] : counts) {
                    const double weight = count * idf(gram);
                    if (weight != 0)
                        image.table[gram].push_back({r, weight, weight / norm});
                }
            }
        }
        return images_.size() - 1;
    }

    double score(std::size_t number, const Words& words) const {
        const Image& image = images_.at(number);
        if (image.lengths.empty()) return 0;
        std::vector<double> scale;
        const std::int64_t length = bigrams(words);
        for (const std::int64_t other : image.lengths) {
            const double d = static_cast<double>(std::llabs(length - other));
            scale.push_back(std::exp(-(d * d) / (2 * sigma_ * sigma_)));
        }
        double total = 0;
        std::vector<std::pair<Gram, int>> counts;
        for (int n = 1; n <= 4; ++n) {
            count_grams(words, n, counts);
            double square = 0, dot = 0;
            for (const auto& [gram, count] : counts) {
                const double weight = count * idf(gram);
                square += weight * weight;
                const auto found = image.table.find(gram);
                if (found == image.table.end()) continue;
                for (const Entry& entry : found->second)
                    dot += std::min(weight, entry.weight) * entry.relative * scale[entry.reference];
            }
            if (square != 0) total += dot / std::sqrt(square);
        }
        return 10 * total / (4 * static_cast<double>(image.lengths.size()));
    }

    std::size_t images() const { return images_.size(); }

  private:
    struct Entry {
        std::size_t reference;
        double weight, relative;
    };
    struct Image {
        std::unordered_map<Gram, std::vector<Entry>, GramHash> table;
        std::vector<std::int64_t> lengths;
    };

    static std::int64_t bigrams(const Words& words) {
        return words.empty() ? 0 : static_cast<std::int64_t>(words.size()) - 1;
    }

    double idf(const Gram& gram) const {
        const auto found = idf_.find(gram);
        return found == idf_.end() ? log_documents_ : found->second;
    }

    double log_documents_, sigma_;
    std::unordered_map<Gram, double, GramHash> idf_;
    std::vector<Image> images_;
};

}  // namespace p2c
