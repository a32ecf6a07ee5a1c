#include "kernels_impl.h"

namespace elixir {
const Kernels kernels_avx512{"avx512", adamw_any, adamw8_any, norm_any, cast_any};
}
