/* GPU performance monitoring (Hopper and newer): ratios between two samples. */
#include "sim_state.h"

#include <stdlib.h>
#include <string.h>

/* A sample is the integral of every activity over time; the caller holds it by pointer. */
struct nvmlGpmSample_st {
    uint64_t taken_ns;
    double integral[SIM_ACTIVITIES];
};

static nvmlReturn_t supported(nvmlDevice_t device, struct sim_handle *h)
{
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    *h = sim_unpack(device);
    if (h->tag != SIM_TAG_GPU && h->tag != SIM_TAG_MIG)
        return NVML_ERROR_INVALID_ARGUMENT;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t device, nvmlGpmSupport_t *support)
{
    struct sim_handle h;
    nvmlReturn_t result = supported(device, &h);
    if (result != NVML_SUCCESS)
        return result;
    if (!support)
        return NVML_ERROR_INVALID_ARGUMENT;
    support->isSupportedDevice = sim->board.gpm;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *sample)
{
    if (!sample)
        return NVML_ERROR_INVALID_ARGUMENT;
    *sample = calloc(1, sizeof **sample);
    return *sample ? NVML_SUCCESS : NVML_ERROR_MEMORY;
}

SIM_EXPORT nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t sample)
{
    if (!sample)
        return NVML_ERROR_INVALID_ARGUMENT;
    free(sample);
    return NVML_SUCCESS;
}

static void read_integral(const struct sim_gpu_state *gpu, const double *activity,
                          const double *integral, nvmlGpmSample_t sample)
{
    sample->taken_ns = sim_now_ns();
    double seconds = (double)(sample->taken_ns - gpu->since_ns) * 1e-9;
    for (int a = 0; a < SIM_ACTIVITIES; a++)
        sample->integral[a] = integral[a] + activity[a] * seconds;
}

SIM_EXPORT nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t device, nvmlGpmSample_t sample)
{
    struct sim_handle h;
    nvmlReturn_t result = supported(device, &h);
    if (result != NVML_SUCCESS)
        return result;
    if (!sample)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (!sim->board.gpm)
        return NVML_ERROR_NOT_SUPPORTED;
    result = sim_enter(__func__, SIM_READ, h.gpu, SIM_NOT_MIG);
    if (result != NVML_SUCCESS)
        return result;
    const struct sim_gpu_state *gpu = sim_view(h.gpu);
    if (h.tag == SIM_TAG_MIG) {
        const struct sim_gi *gi = sim_find_ci(gpu, h) ? &gpu->gi[h.gi] : NULL;
        if (gi)
            read_integral(gpu, gi->activity, gi->integral, sample);
        else
            result = NVML_ERROR_INVALID_ARGUMENT;
    } else {
        read_integral(gpu, gpu->activity, gpu->integral, sample);
    }
    return sim_leave(__func__, SIM_READ, h.gpu, SIM_NOT_MIG, result);
}

SIM_EXPORT nvmlReturn_t nvmlGpmMigSampleGet(nvmlDevice_t device, unsigned int gi_id,
                                            nvmlGpmSample_t sample)
{
    struct sim_handle h;
    nvmlReturn_t result = supported(device, &h);
    if (result != NVML_SUCCESS)
        return result;
    if (!sample || h.tag != SIM_TAG_GPU)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (!sim->board.gpm)
        return NVML_ERROR_NOT_SUPPORTED;
    result = sim_enter(__func__, SIM_READ, h.gpu, gi_id);
    if (result != NVML_SUCCESS)
        return result;
    const struct sim_gpu_state *gpu = sim_view(h.gpu);
    result = gpu->mig_current ? NVML_ERROR_NOT_FOUND : NVML_ERROR_NOT_SUPPORTED;
    for (int i = 0; i < SIM_MAX_GI && gpu->mig_current; i++)
        if (gpu->gi[i].used && gpu->gi[i].id == gi_id) {
            read_integral(gpu, gpu->gi[i].activity, gpu->gi[i].integral, sample);
            result = NVML_SUCCESS;
        }
    return sim_leave(__func__, SIM_READ, h.gpu, gi_id, result);
}

SIM_EXPORT nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *request)
{
    static const struct { unsigned int id; int activity; } METRICS[] = {
        {1, SIM_ACT_GRAPHICS}, {2, SIM_ACT_SM}, {3, SIM_ACT_OCCUPANCY}, {5, SIM_ACT_TENSOR},
        {10, SIM_ACT_DRAM}, {11, SIM_ACT_FP64}, {12, SIM_ACT_FP32}, {13, SIM_ACT_FP16}};
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    if (!request || !request->sample1 || !request->sample2)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (request->version != 1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    double seconds =
        (double)((int64_t)(request->sample2->taken_ns - request->sample1->taken_ns)) * 1e-9;
    if (seconds <= 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned int i = 0; i < request->numMetrics && i < NVML_GPM_METRIC_MAX; i++) {
        nvmlGpmMetric_t *metric = &request->metrics[i];
        metric->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
        metric->value = 0;
        for (size_t m = 0; m < sizeof METRICS / sizeof *METRICS; m++)
            if (METRICS[m].id == metric->metricId) {
                int a = METRICS[m].activity;
                metric->value = 100 *
                    (request->sample2->integral[a] - request->sample1->integral[a]) / seconds;
                metric->nvmlReturn = NVML_SUCCESS;
            }
    }
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlGpmQueryIfStreamingEnabled(nvmlDevice_t device, unsigned int *state)
{
    struct sim_handle h;
    nvmlReturn_t result = supported(device, &h);
    if (result == NVML_SUCCESS && !state)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS)
        *state = 0;
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlGpmSetStreamingEnabled(nvmlDevice_t device, unsigned int state)
{
    struct sim_handle h;
    nvmlReturn_t result = supported(device, &h);
    if (result != NVML_SUCCESS)
        return result;
    return state > 1 ? NVML_ERROR_INVALID_ARGUMENT
                     : state ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
}
