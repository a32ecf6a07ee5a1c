// The kernels for AVX-512 F, BW, DQ, VL.
#define NOISER_LANES 16
#include "network_rows.hpp"
#include "row_sums.hpp"
#include "tone_rows.hpp"
#include "training_step.hpp"

noiser::Kernels noiser::avx512_kernels() {
    return {"avx512", network_rows, integer_row_sums, float_row_sums, tone_rows,
            training_steps};
}
