#include "layout.hpp"

#include <algorithm>
#include <stdexcept>

namespace vitcod {
namespace {

void transpose(Head& head, std::int64_t queries, std::int64_t keys) {
    const auto entries = static_cast<std::size_t>(head.ptr[static_cast<std::size_t>(queries)]);
    head.col_ptr.assign(static_cast<std::size_t>(keys) + 1, 0);
    for (std::size_t e = 0; e < entries; ++e) ++head.col_ptr[static_cast<std::size_t>(head.idx[e]) + 1];
    for (std::size_t j = 0; j < static_cast<std::size_t>(keys); ++j)
        head.col_ptr[j + 1] += head.col_ptr[j];
    head.col_row.assign(entries + LANES, 0);
    head.col_entry.assign(entries + LANES, 0);
    std::vector<std::int32_t> next(head.col_ptr.begin(), head.col_ptr.end() - 1);
    for (std::size_t i = 0; i < static_cast<std::size_t>(queries); ++i)
        for (std::int32_t e = head.ptr[i]; e < head.ptr[i + 1]; ++e) {
            const auto at = static_cast<std::size_t>(
                next[static_cast<std::size_t>(head.idx[static_cast<std::size_t>(e)])]++);
            head.col_row[at] = head.row[i];
            head.col_entry[at] = e;
        }
}

void make_tiles(Head& head, std::int64_t queries, std::int64_t keys) {
    std::vector<std::uint32_t> bits(static_cast<std::size_t>(keys));
    head.tile_ptr.push_back(0);
    for (std::int64_t first = 0; first < queries; first += LANES) {
        std::fill(bits.begin(), bits.end(), std::uint32_t{0});
        const std::int64_t last = std::min<std::int64_t>(first + LANES, queries);
        for (std::int64_t i = first; i < last; ++i)
            for (std::int32_t e = head.ptr[static_cast<std::size_t>(i)];
                 e < head.ptr[static_cast<std::size_t>(i) + 1]; ++e)
                bits[static_cast<std::size_t>(head.idx[static_cast<std::size_t>(e)])] |=
                    static_cast<std::uint32_t>(1u << (i - first));
        for (std::size_t j = 0; j < bits.size(); ++j)
            if (bits[j]) {
                head.tile_key.push_back(static_cast<std::int32_t>(j));
                head.tile_mask.push_back(bits[j]);
            }
        head.tile_ptr.push_back(static_cast<std::int32_t>(head.tile_key.size()));
    }
    head.tile_key.resize(head.tile_key.size() + LANES, 0);
    head.tile_mask.resize(head.tile_mask.size() + LANES, 0);
}

}  // namespace

Layout build_layout(std::int64_t heads, std::int64_t queries, std::int64_t keys,
                    const std::int64_t* ptr, const std::int32_t* idx, const std::int32_t* order,
                    const std::int32_t* kinds, std::int64_t block) {
    Layout layout;
    layout.queries = queries;
    layout.keys = keys;
    for (std::int64_t h = 0; h < heads; ++h) {
        const std::int64_t* p = ptr + h * queries;
        const std::int32_t* o = order + h * queries;
        Head head;
        head.kind = static_cast<Kind>(kinds[h]);
        head.first = layout.entries;
        head.row.assign(o, o + queries);
        head.ptr.push_back(0);
        std::vector<char> seen(static_cast<std::size_t>(queries), 0);
        for (std::int64_t i = 0; i < queries; ++i) {
            const std::int32_t r = o[i];
            if (r < 0 || r >= queries || seen[static_cast<std::size_t>(r)]++)
                throw std::invalid_argument("order must be a permutation of the rows");
            for (std::int64_t e = p[r]; e < p[r + 1]; ++e) {
                if (idx[e] < 0 || idx[e] >= keys || (e > p[r] && idx[e] <= idx[e - 1]))
                    throw std::invalid_argument("keys of a row must ascend and lie in range");
                head.idx.push_back(idx[e]);
            }
            head.ptr.push_back(static_cast<std::int32_t>(head.idx.size()));
        }
        layout.entries += static_cast<std::int64_t>(head.idx.size());
        head.idx.resize(head.idx.size() + LANES, 0);
        head.blocks = block > 0 ? static_cast<int>((keys + block - 1) / block) : 1;
        if (head.blocks > 1) {
            head.segment.reserve(static_cast<std::size_t>(queries * (head.blocks + 1)));
            for (std::int64_t i = 0; i < queries; ++i) {
                const auto from = head.idx.begin() + head.ptr[static_cast<std::size_t>(i)];
                const auto to = head.idx.begin() + head.ptr[static_cast<std::size_t>(i) + 1];
                for (std::int64_t b = 0; b <= head.blocks; ++b)
                    head.segment.push_back(static_cast<std::int32_t>(
                        std::lower_bound(from, to, static_cast<std::int32_t>(b * block)) -
                        head.idx.begin()));
            }
        }
        transpose(head, queries, keys);
        if (head.kind == lanes) make_tiles(head, queries, keys);
        layout.heads.push_back(std::move(head));
    }
    return layout;
}

}  // namespace vitcod
