#define VITCOD_WIDTH 16
#define VITCOD_NAME "avx512"
#include "attention_rows.hpp"

namespace vitcod {
Kernels avx512_kernels() { return make_kernels(); }
}  // namespace vitcod
