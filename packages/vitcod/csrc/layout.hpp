// The plan of one layer as the kernels walk it: per head a CSR over ordered rows, its transpose for
// the backward pass, and tiles of 32 rows with the union of their keys.
#pragma once
#include <cstdint>
#include <vector>

namespace vitcod {

constexpr int LANES = 32;  // rows of a tile

enum Kind : std::int32_t { csr = 0, lanes = 1 };

struct Head {
    Kind kind = csr;
    std::int64_t first = 0;  // of this head's entries among those of the layer
    std::vector<std::int32_t> row;      // ordered position -> query row
    std::vector<std::int32_t> ptr;      // queries + 1, over ordered positions
    std::vector<std::int32_t> idx;      // keys, ascending in each row; LANES spare entries at the end
    std::vector<std::int32_t> segment;  // queries x (blocks + 1), boundaries of column blocks
    int blocks = 1;
    // Transpose: for each key the (query row, entry) pairs.
    std::vector<std::int32_t> col_ptr, col_row, col_entry;
    // Tiles of LANES ordered rows.
    std::vector<std::int32_t> tile_ptr, tile_key;
    std::vector<std::uint32_t> tile_mask;
};

struct Layout {
    std::int64_t queries = 0, keys = 0, entries = 0;
    std::vector<Head> heads;
};

// Build a layout. `order` holds each head's row order, `kinds` the kernel of each head,
// `block` the keys of a column block (0: one block).
Layout build_layout(std::int64_t heads, std::int64_t queries, std::int64_t keys,
                    const std::int64_t* ptr, const std::int32_t* idx, const std::int32_t* order,
                    const std::int32_t* kinds, std::int64_t block);

}  // namespace vitcod
