// Crop, flip, trigger and normalise of a batch of bytes, in one pass.
#pragma once

#include <cstdint>
#include <string>

namespace backdoor_ft {

struct Batch {
    const std::uint8_t* images;   // [n, height, width, channels]
    const std::int64_t* draws;    // [n, 3]: rows and columns of the window, mirrored or not
    const std::uint8_t* stamped;  // [n]: whether the sample carries the trigger
    const std::uint8_t* pattern;  // [height, width, channels]
    const std::int32_t* alpha;    // [height, width, channels], 0 ... 256
    const float* table;           // [channels, 256]: the normalised value of a byte
    float* out;                   // [n, channels, height, width]
    std::int64_t n, height, width, channels, pad;
};

using Kernel = void (*)(const Batch&, std::int64_t first, std::int64_t last);

Kernel portable_kernel();
Kernel avx2_kernel();
Kernel avx512_kernel();

bool available(const std::string& name);
Kernel choose(std::string& name);

}  // namespace backdoor_ft
