// The kernels for any processor, 128-bit vectors.
#define NOISER_LANES 4
#include "network_rows.hpp"
#include "row_sums.hpp"
#include "tone_rows.hpp"
#include "training_step.hpp"

noiser::Kernels noiser::portable_kernels() {
    return {"portable", network_rows, integer_row_sums, float_row_sums, tone_rows,
            training_steps};
}
