/* Initialisation, versions, error texts, and finding devices. */
#include "sim_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

SIM_EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    nvmlReturn_t result = sim_attach();
    if (result == NVML_SUCCESS) {
        result = sim_read_environment();
        if (result != NVML_SUCCESS)
            sim_detach();
    }
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

SIM_EXPORT nvmlReturn_t nvmlInit(void)
{
    return nvmlInitWithFlags(0);
}

SIM_EXPORT nvmlReturn_t nvmlShutdown(void)
{
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    sim_detach();
    return NVML_SUCCESS;
}

SIM_EXPORT const char *nvmlErrorString(nvmlReturn_t result)
{
    switch ((int)result) {
    case 0: return "Success";
    case 1: return "Uninitialized";
    case 2: return "Invalid Argument";
    case 3: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case 5: return "Already Initialized";
    case 6: return "Not Found";
    case 7: return "Insufficient Size";
    case 9: return "Driver Not Loaded";
    case 10: return "Timeout";
    case 15: return "GPU is lost";
    case 16: return "GPU requires reset";
    case 17: return "The operating system has blocked the request";
    case 19: return "In use by another client";
    case 20: return "Insufficient Memory";
    case 23: return "Insufficient Resources";
    case 25: return "The provided version is invalid or unsupported";
    default: return "Unknown Error";
    }
}

static nvmlReturn_t copy_text(const char *text, char *out, unsigned int length)
{
    if (!out)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (strlen(text) + 1 > length)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(out, text, strlen(text) + 1);
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    return sim ? copy_text("580.65.06", version, length) : NVML_ERROR_UNINITIALIZED;
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length)
{
    return copy_text("13.580.65.06", version, length);
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version)
{
    if (!version)
        return NVML_ERROR_INVALID_ARGUMENT;
    *version = 13000;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    return nvmlSystemGetCudaDriverVersion(version);
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int length)
{
    char path[64], text[256];
    snprintf(path, sizeof path, "/proc/%u/comm", pid);
    FILE *file = fopen(path, "r");
    if (!file)
        return NVML_ERROR_NOT_FOUND;
    bool read = fgets(text, sizeof text, file) != NULL;
    fclose(file);
    if (!read)
        return NVML_ERROR_NOT_FOUND;
    text[strcspn(text, "\n")] = 0;
    return copy_text(text, name, length);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    if (!count)
        return NVML_ERROR_INVALID_ARGUMENT;
    *count = sim->n_gpus;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetCount(unsigned int *count)
{
    return nvmlDeviceGetCount_v2(count);
}

static nvmlDevice_t gpu_handle(uint32_t gpu)
{
    return sim_pack((struct sim_handle){SIM_TAG_GPU, gpu, 0, 0, 0});
}

static nvmlDevice_t mig_handle(uint32_t gpu, uint32_t gi, uint32_t ci, uint32_t generation)
{
    return sim_pack((struct sim_handle){SIM_TAG_MIG, gpu, gi, ci, generation});
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    if (!device || index >= sim->n_gpus)
        return NVML_ERROR_INVALID_ARGUMENT;
    *device = gpu_handle(index);
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device)
{
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    char text[96];
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    if (!uuid || !device)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = sim_enter(__func__, SIM_READ, SIM_NOT_MIG, SIM_NOT_MIG);
    if (result != NVML_SUCCESS)
        return result;
    result = NVML_ERROR_NOT_FOUND;
    for (uint32_t g = 0; g < sim->n_gpus && result != NVML_SUCCESS; g++) {
        sim_gpu_uuid(g, text);
        if (!strcmp(text, uuid)) {
            *device = gpu_handle(g);
            result = NVML_SUCCESS;
        }
        const struct sim_gpu_state *gpu = sim_view(g);
        for (uint32_t i = 0; i < SIM_MAX_GI; i++)
            for (uint32_t c = 0; gpu->gi[i].used && c < SIM_MAX_CI; c++) {
                if (!gpu->gi[i].ci[c].used)
                    continue;
                sim_mig_uuid(g, &gpu->gi[i], &gpu->gi[i].ci[c], text);
                if (!strcmp(text, uuid)) {
                    *device = mig_handle(g, i, c, gpu->gi[i].ci[c].generation);
                    result = NVML_SUCCESS;
                }
            }
    }
    return sim_leave(__func__, SIM_READ, SIM_NOT_MIG, SIM_NOT_MIG, result);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *id, nvmlDevice_t *device)
{
    unsigned domain, bus, slot;
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    if (!id || !device)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (sscanf(id, "%x:%x:%x", &domain, &bus, &slot) != 3)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (uint32_t g = 0; g < sim->n_gpus; g++)
        if (domain == 0 && bus == 7 + 8 * g && slot == 0) {
            *device = gpu_handle(g);
            return NVML_SUCCESS;
        }
    return NVML_ERROR_NOT_FOUND;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *id, nvmlDevice_t *device)
{
    return nvmlDeviceGetHandleByPciBusId_v2(id, device);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *is_mig)
{
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    struct sim_handle h = sim_unpack(device);
    if (!is_mig || (h.tag != SIM_TAG_GPU && h.tag != SIM_TAG_MIG))
        return NVML_ERROR_INVALID_ARGUMENT;
    *is_mig = h.tag == SIM_TAG_MIG;
    return NVML_SUCCESS;
}

static nvmlReturn_t instance_ids(const char *function, nvmlDevice_t device, unsigned int *gi_id,
                                 unsigned int *ci_id)
{
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    struct sim_handle h = sim_unpack(device);
    if (h.tag == SIM_TAG_GPU)
        return NVML_ERROR_NOT_SUPPORTED;
    if (h.tag != SIM_TAG_MIG)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = sim_enter(function, SIM_READ, h.gpu, SIM_NOT_MIG);
    if (result != NVML_SUCCESS)
        return result;
    const struct sim_gpu_state *gpu = sim_view(h.gpu);
    const struct sim_ci *ci = sim_find_ci(gpu, h);
    if (!ci) {
        result = NVML_ERROR_INVALID_ARGUMENT;
    } else {
        if (gi_id)
            *gi_id = gpu->gi[h.gi].id;
        if (ci_id)
            *ci_id = ci->id;
    }
    return sim_leave(function, SIM_READ, h.gpu, SIM_NOT_MIG, result);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned int *id)
{
    return id ? instance_ids(__func__, device, id, NULL) : NVML_ERROR_INVALID_ARGUMENT;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned int *id)
{
    return id ? instance_ids(__func__, device, NULL, id) : NVML_ERROR_INVALID_ARGUMENT;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count)
{
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    struct sim_handle h = sim_unpack(device);
    if (!count || h.tag != SIM_TAG_GPU)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = sim_enter(__func__, SIM_READ, h.gpu, SIM_NOT_MIG);
    if (result != NVML_SUCCESS)
        return result;
    *count = sim_view(h.gpu)->mig_current ? sim->board.compute_slices : 0;
    return sim_leave(__func__, SIM_READ, h.gpu, SIM_NOT_MIG, NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device,
                                                            unsigned int index,
                                                            nvmlDevice_t *mig)
{
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    struct sim_handle h = sim_unpack(device);
    if (!mig || h.tag != SIM_TAG_GPU || index >= sim->board.compute_slices)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = sim_enter(__func__, SIM_READ, h.gpu, SIM_NOT_MIG);
    if (result != NVML_SUCCESS)
        return result;
    const struct sim_gpu_state *gpu = sim_view(h.gpu);
    result = gpu->mig_current ? NVML_ERROR_NOT_FOUND : NVML_ERROR_NOT_SUPPORTED;
    for (uint32_t i = 0; i < SIM_MAX_GI; i++)
        for (uint32_t c = 0; gpu->gi[i].used && c < SIM_MAX_CI; c++) {
            const struct sim_ci *ci = &gpu->gi[i].ci[c];
            if (ci->used && ci->device_index == index) {
                *mig = mig_handle(h.gpu, i, c, ci->generation);
                result = NVML_SUCCESS;
            }
        }
    return sim_leave(__func__, SIM_READ, h.gpu, SIM_NOT_MIG, result);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t mig,
                                                                     nvmlDevice_t *device)
{
    unsigned int ignored;
    if (!device)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = instance_ids(__func__, mig, &ignored, NULL);
    if (result == NVML_SUCCESS)
        *device = gpu_handle(sim_unpack(mig).gpu);
    else if (result == NVML_ERROR_NOT_SUPPORTED)
        result = NVML_ERROR_INVALID_ARGUMENT;
    return result;
}
