// The kernels for AVX2 and FMA.
#define NOISER_LANES 8
#include "network_rows.hpp"
#include "row_sums.hpp"
#include "tone_rows.hpp"
#include "training_step.hpp"

noiser::Kernels noiser::avx2_kernels() {
    return {"avx2", network_rows, integer_row_sums, float_row_sums, tone_rows,
            training_steps};
}
