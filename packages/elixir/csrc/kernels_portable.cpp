#include "kernels_impl.h"

namespace elixir {
const Kernels kernels_portable{"portable", adamw_any, adamw8_any, norm_any, cast_any};
}
