#include "kernels_impl.h"

namespace elixir {
const Kernels kernels_avx2{"avx2", adamw_any, adamw8_any, norm_any, cast_any};
}
