/* What a device says about itself: identity, memory, processes, energy, clocks. */
#include "sim_state.h"

#include <stdio.h>
#include <string.h>

#define MIB (1024ull * 1024ull)

/* Opens a call on a GPU or MIG handle: sets h, gpu and, on a MIG handle, gi and ci. */
#define BEGIN(condition)                                                                           \
    if (!sim)                                                                                      \
        return NVML_ERROR_UNINITIALIZED;                                                           \
    struct sim_handle h = sim_unpack(device);                                                      \
    if ((h.tag != SIM_TAG_GPU && h.tag != SIM_TAG_MIG) || !(condition))                            \
        return NVML_ERROR_INVALID_ARGUMENT;                                                        \
    nvmlReturn_t result = sim_enter(__func__, SIM_READ, h.gpu, SIM_NOT_MIG);                       \
    if (result != NVML_SUCCESS)                                                                    \
        return result;                                                                             \
    const struct sim_gpu_state *gpu = sim_view(h.gpu);                                             \
    const struct sim_ci *ci = h.tag == SIM_TAG_MIG ? sim_find_ci(gpu, h) : NULL;                   \
    const struct sim_gi *gi = ci ? &gpu->gi[h.gi] : NULL;                                          \
    if (h.tag == SIM_TAG_MIG && !ci)                                                               \
    return sim_leave(__func__, SIM_READ, h.gpu, SIM_NOT_MIG, NVML_ERROR_INVALID_ARGUMENT)
#define END(code) return sim_leave(__func__, SIM_READ, h.gpu, SIM_NOT_MIG, code)
#define USE_INSTANCE (void)gi

static nvmlReturn_t put_text(const char *text, char *out, unsigned int length)
{
    if (strlen(text) + 1 > length)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(out, text, strlen(text) + 1);
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
    char text[256];
    BEGIN(name);
    if (!ci) {
        snprintf(text, sizeof text, "%s", sim->board.product);
    } else {
        const struct sim_profile *p = &sim->board.profiles[gi->profile];
        const struct sim_compute_profile *c = &p->compute[ci->profile];
        if (c->slices == p->slices)
            snprintf(text, sizeof text, "%s MIG %s", sim->board.product, p->name);
        else
            snprintf(text, sizeof text, "%s MIG %uc.%s", sim->board.product, c->slices, p->name);
    }
    END(put_text(text, name, length));
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    char text[96];
    BEGIN(uuid);
    if (ci)
        sim_mig_uuid(h.gpu, gi, ci, text);
    else
        sim_gpu_uuid(h.gpu, text);
    END(put_text(text, uuid, length));
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index)
{
    BEGIN(index);
    USE_INSTANCE;
    *index = ci ? ci->device_index : h.gpu;
    END(NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minor)
{
    BEGIN(minor);
    USE_INSTANCE;
    *minor = h.gpu;
    END(ci ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, unsigned int length)
{
    char text[32];
    BEGIN(serial);
    USE_INSTANCE;
    snprintf(text, sizeof text, "%013llu", (unsigned long long)(sim->seed % 1000000007u) + h.gpu);
    END(ci ? NVML_ERROR_NOT_SUPPORTED : put_text(text, serial, length));
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    BEGIN(pci);
    USE_INSTANCE;
    memset(pci, 0, sizeof *pci);
    pci->bus = 7 + 8 * h.gpu;
    pci->pciDeviceId = sim->board.pci_device_id;
    pci->pciSubSystemId = sim->board.pci_device_id;
    snprintf(pci->busId, sizeof pci->busId, "00000000:%02X:00.0", pci->bus & 0xFFu);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "0000:%02X:00.0", pci->bus & 0xFFu);
    END(NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device,
                                                   nvmlDeviceAttributes_t *attributes)
{
    BEGIN(attributes);
    if (!ci)
        END(NVML_ERROR_NOT_SUPPORTED);
    const struct sim_profile *p = &sim->board.profiles[gi->profile];
    const struct sim_compute_profile *c = &p->compute[ci->profile];
    *attributes = (nvmlDeviceAttributes_t){
        .multiprocessorCount = c->multiprocessors, .sharedCopyEngineCount = p->copy_engines,
        .sharedDecoderCount = p->decoders, .sharedEncoderCount = p->encoders,
        .sharedJpegCount = p->jpeg, .sharedOfaCount = p->ofa, .gpuInstanceSliceCount = p->slices,
        .computeInstanceSliceCount = c->slices, .memorySizeMB = p->memory_mib};
    END(NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetAttributes(nvmlDevice_t device,
                                                nvmlDeviceAttributes_t *attributes)
{
    return nvmlDeviceGetAttributes_v2(device, attributes);
}

static bool belongs(const struct sim_process *p, const struct sim_gi *gi, const struct sim_ci *ci)
{
    return sim_process_alive(p) && (!gi || (p->gi == gi->id && p->ci == ci->id));
}

static uint64_t memory_total(const struct sim_gi *gi)
{
    return (gi ? sim->board.profiles[gi->profile].memory_mib : sim->board.memory_mib) * MIB;
}

static uint64_t memory_used(const struct sim_gpu_state *gpu, const struct sim_gi *gi)
{
    uint64_t used = 0;
    for (int p = 0; p < SIM_MAX_PROCESSES; p++)
        if (sim_process_alive(&gpu->processes[p]) && (!gi || gpu->processes[p].gi == gi->id))
            used += gpu->processes[p].memory_bytes;
    uint64_t total = memory_total(gi);
    return used < total ? used : total;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    BEGIN(memory);
    memory->total = memory_total(gi);
    memory->used = memory_used(gpu, gi);
    memory->free = memory->total - memory->used;
    END(NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    BEGIN(memory);
    if (memory->version != ((unsigned)sizeof *memory | 2u << 24))
        END(NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    memory->total = memory_total(gi);
    memory->reserved = 0;
    memory->used = memory_used(gpu, gi);
    memory->free = memory->total - memory->used;
    END(NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *memory)
{
    BEGIN(memory);
    memory->bar1Total = memory_total(gi);
    memory->bar1Used = MIB;
    memory->bar1Free = memory->bar1Total - MIB;
    END(NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device,
                                                      nvmlUtilization_t *utilization)
{
    BEGIN(utilization);
    USE_INSTANCE;
    /* In MIG mode neither the GPU nor its MIG devices have utilisation rates. */
    if (ci || gpu->mig_current)
        END(NVML_ERROR_NOT_SUPPORTED);
    utilization->gpu = (unsigned)(gpu->activity[SIM_ACT_GRAPHICS] * 100 + 0.5);
    utilization->memory = (unsigned)(gpu->activity[SIM_ACT_DRAM] * 100 + 0.5);
    END(NVML_SUCCESS);
}

static nvmlReturn_t codec(const char *function, nvmlDevice_t device, unsigned int *utilization,
                          unsigned int *period)
{
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    struct sim_handle h = sim_unpack(device);
    if ((h.tag != SIM_TAG_GPU && h.tag != SIM_TAG_MIG) || !utilization || !period)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = sim_enter(function, SIM_READ, h.gpu, SIM_NOT_MIG);
    if (result != NVML_SUCCESS)
        return result;
    if (h.tag == SIM_TAG_MIG || sim_view(h.gpu)->mig_current)
        result = NVML_ERROR_NOT_SUPPORTED;
    *utilization = 0;
    *period = 167000;
    return sim_leave(function, SIM_READ, h.gpu, SIM_NOT_MIG, result);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t device,
                                                        unsigned int *utilization,
                                                        unsigned int *period)
{
    return codec(__func__, device, utilization, period);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t device,
                                                        unsigned int *utilization,
                                                        unsigned int *period)
{
    return codec(__func__, device, utilization, period);
}

/* Temperature follows power: 30 degrees idle, 75 at the limit. */
static unsigned celsius(const struct sim_gpu_state *gpu)
{
    return (unsigned)(30.5 + 45.0 * sim_power_mw(gpu) / sim->board.power_limit_mw);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device,
                                                 nvmlTemperatureSensors_t sensor,
                                                 unsigned int *temperature)
{
    BEGIN(temperature && sensor == NVML_TEMPERATURE_GPU);
    USE_INSTANCE;
    *temperature = celsius(gpu);
    END(NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device,
                                                  nvmlTemperature_t *temperature)
{
    BEGIN(temperature);
    USE_INSTANCE;
    if (temperature->version != ((unsigned)sizeof *temperature | 1u << 24))
        END(NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    temperature->temperature = (int)celsius(gpu);
    END(NVML_SUCCESS);
}

/* Questions that only the whole GPU answers. */
#define PARENT_ONLY(name, value)                                                                   \
    SIM_EXPORT nvmlReturn_t name(nvmlDevice_t device, unsigned int *out)                           \
    {                                                                                              \
        BEGIN(out);                                                                                \
        USE_INSTANCE;                                                                              \
        if (ci)                                                                                    \
            END(NVML_ERROR_NOT_SUPPORTED);                                                         \
        *out = (value);                                                                            \
        END(NVML_SUCCESS);                                                                         \
    }
PARENT_ONLY(nvmlDeviceGetPowerUsage, (unsigned)(sim_power_mw(gpu) + 0.5))
PARENT_ONLY(nvmlDeviceGetEnforcedPowerLimit, sim->board.power_limit_mw)
PARENT_ONLY(nvmlDeviceGetPowerManagementLimit, sim->board.power_limit_mw)
PARENT_ONLY(nvmlDeviceGetPowerManagementDefaultLimit, sim->board.power_limit_mw)

static double energy_now(const struct sim_gpu_state *gpu)
{
    return gpu->energy_mj + sim_power_mw(gpu) * (double)(sim_now_ns() - gpu->since_ns) * 1e-9;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device,
                                                            unsigned long long *energy)
{
    BEGIN(energy);
    USE_INSTANCE;
    if (ci)
        END(NVML_ERROR_NOT_SUPPORTED);
    *energy = (unsigned long long)energy_now(gpu);
    END(NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count,
                                                 nvmlFieldValue_t *values)
{
    BEGIN(values && count > 0);
    USE_INSTANCE;
    for (int i = 0; i < count; i++) {
        nvmlFieldValue_t *v = &values[i];
        v->timestamp = (long long)(sim_now_ns() / 1000);
        v->latencyUsec = 0;
        v->nvmlReturn = ci ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
        v->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
        v->value.ullVal = 0;
        switch (v->fieldId) {
        case 83: /* total energy, mJ */
        case 191:
            v->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
            v->value.ullVal = (unsigned long long)energy_now(gpu);
            break;
        case 184: /* resetless MIG */
            v->value.uiVal = !sim->board.mode_change_resets;
            break;
        case 185: /* average power, mW; not on GA100 */
            if (sim->board.architecture == 7)
                v->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
            /* fall through */
        case 186:
            v->value.uiVal = (unsigned)(sim_power_mw(gpu) + 0.5);
            break;
        case 188:
        case 189:
        case 190:
            v->value.uiVal = sim->board.power_limit_mw;
            break;
        case 199: /* placements may be asked with MIG off, profiles may not */
            v->value.uiVal = 0;
            break;
        default:
            v->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
        }
    }
    END(NVML_SUCCESS);
}

static nvmlReturn_t clock_of(const char *function, nvmlDevice_t device, nvmlClockType_t type,
                             unsigned int *clock)
{
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    struct sim_handle h = sim_unpack(device);
    if ((h.tag != SIM_TAG_GPU && h.tag != SIM_TAG_MIG) || !clock || (unsigned)type > 3)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = sim_enter(function, SIM_READ, h.gpu, SIM_NOT_MIG);
    if (result != NVML_SUCCESS)
        return result;
    if (h.tag == SIM_TAG_MIG)
        result = NVML_ERROR_NOT_SUPPORTED;
    *clock = type == NVML_CLOCK_MEM ? 1593 : 1410;
    return sim_leave(function, SIM_READ, h.gpu, SIM_NOT_MIG, result);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type,
                                               unsigned int *clock)
{
    return clock_of(__func__, device, type, clock);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type,
                                                  unsigned int *clock)
{
    return clock_of(__func__, device, type, clock);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetFanSpeed(nvmlDevice_t device, unsigned int *speed)
{
    BEGIN(speed);
    USE_INSTANCE;
    END(NVML_ERROR_NOT_SUPPORTED); /* data-centre boards have no fan of their own */
}

/* What a Linux driver without confidential computing says; nvitop asks. */

SIM_EXPORT nvmlReturn_t nvmlDeviceGetDriverModel_v2(nvmlDevice_t device,
                                                    nvmlDriverModel_t *current,
                                                    nvmlDriverModel_t *pending)
{
    BEGIN(current && pending);
    USE_INSTANCE;
    END(NVML_ERROR_NOT_SUPPORTED);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetDriverModel(nvmlDevice_t device, nvmlDriverModel_t *current,
                                                 nvmlDriverModel_t *pending)
{
    return nvmlDeviceGetDriverModel_v2(device, current, pending);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetConfComputeMemSizeInfo(nvmlDevice_t device,
                                                            nvmlConfComputeMemSizeInfo_t *info)
{
    BEGIN(info);
    USE_INSTANCE;
    END(NVML_ERROR_NOT_SUPPORTED);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t *mode)
{
    BEGIN(mode);
    USE_INSTANCE;
    *mode = NVML_FEATURE_ENABLED;
    END(NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetDisplayMode(nvmlDevice_t device, nvmlEnableState_t *mode)
{
    BEGIN(mode);
    USE_INSTANCE;
    *mode = NVML_FEATURE_DISABLED;
    END(NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetDisplayActive(nvmlDevice_t device, nvmlEnableState_t *active)
{
    BEGIN(active);
    USE_INSTANCE;
    *active = NVML_FEATURE_DISABLED;
    END(NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetPerformanceState(nvmlDevice_t device, nvmlPstates_t *state)
{
    BEGIN(state);
    USE_INSTANCE;
    *state = NVML_PSTATE_0;
    END(NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t device, nvmlComputeMode_t *mode)
{
    BEGIN(mode);
    USE_INSTANCE;
    *mode = NVML_COMPUTEMODE_DEFAULT;
    END(NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t type,
                                                    nvmlEccCounterType_t counter,
                                                    unsigned long long *errors)
{
    BEGIN(errors && (unsigned)type < 2 && (unsigned)counter < 2);
    USE_INSTANCE;
    *errors = 0;
    END(NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device,
                                                    nvmlPcieUtilCounter_t counter,
                                                    unsigned int *value)
{
    BEGIN(value && (unsigned)counter < 2);
    USE_INSTANCE;
    *value = 0;
    END(ci || gpu->mig_current ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major,
                                                           int *minor)
{
    BEGIN(major && minor);
    USE_INSTANCE;
    *major = (int)sim->board.capability_major;
    *minor = (int)sim->board.capability_minor;
    END(NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device,
                                                  nvmlDeviceArchitecture_t *architecture)
{
    BEGIN(architecture);
    USE_INSTANCE;
    *architecture = sim->board.architecture;
    END(NVML_SUCCESS);
}

static nvmlReturn_t list_processes(const char *function, nvmlDevice_t device, unsigned int *count,
                                   nvmlProcessInfo_t *infos, bool compute)
{
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    struct sim_handle h = sim_unpack(device);
    if ((h.tag != SIM_TAG_GPU && h.tag != SIM_TAG_MIG) || !count)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = sim_enter(function, SIM_READ, h.gpu, SIM_NOT_MIG);
    if (result != NVML_SUCCESS)
        return result;
    const struct sim_gpu_state *gpu = sim_view(h.gpu);
    const struct sim_ci *ci = h.tag == SIM_TAG_MIG ? sim_find_ci(gpu, h) : NULL;
    const struct sim_gi *gi = ci ? &gpu->gi[h.gi] : NULL;
    uint32_t n = 0;
    if (h.tag == SIM_TAG_MIG && !ci) {
        result = NVML_ERROR_INVALID_ARGUMENT;
    } else {
        for (int p = 0; compute && p < SIM_MAX_PROCESSES; p++) {
            const struct sim_process *entry = &gpu->processes[p];
            if (!belongs(entry, gi, ci))
                continue;
            if (infos && n < *count)
                infos[n] = (nvmlProcessInfo_t){.pid = entry->pid,
                                               .usedGpuMemory = entry->memory_bytes,
                                               .gpuInstanceId = entry->gi,
                                               .computeInstanceId = entry->ci};
            n++;
        }
        if (n > *count)
            result = NVML_ERROR_INSUFFICIENT_SIZE;
        *count = n;
    }
    return sim_leave(function, SIM_READ, h.gpu, SIM_NOT_MIG, result);
}

#define PROCESS_LIST(name, type, compute)                                                          \
    SIM_EXPORT nvmlReturn_t name(nvmlDevice_t device, unsigned int *count, type *infos)            \
    {                                                                                              \
        return list_processes(__func__, device, count, (nvmlProcessInfo_t *)(void *)infos,         \
                              compute);                                                            \
    }
PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses_v3, nvmlProcessInfo_t, true)
PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses_v2, nvmlProcessInfo_v2_t, true)
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, nvmlProcessInfo_t, false)
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, nvmlProcessInfo_v2_t, false)
PROCESS_LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, nvmlProcessInfo_t, false)
PROCESS_LIST(nvmlDeviceGetMPSComputeRunningProcesses_v2, nvmlProcessInfo_v2_t, false)

SIM_EXPORT nvmlReturn_t nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device,
                                                              nvmlProcessDetailList_t *list)
{
    BEGIN(list);
    if (list->version != ((unsigned)sizeof *list | 1u << 24))
        END(NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    uint32_t n = 0;
    for (int p = 0; list->mode == 0 && p < SIM_MAX_PROCESSES; p++) {
        const struct sim_process *entry = &gpu->processes[p];
        if (!belongs(entry, gi, ci))
            continue;
        if (list->procArray && n < list->numProcArrayEntries)
            list->procArray[n] = (nvmlProcessDetail_v1_t){
                .pid = entry->pid, .usedGpuMemory = entry->memory_bytes,
                .gpuInstanceId = entry->gi, .computeInstanceId = entry->ci};
        n++;
    }
    if (n > list->numProcArrayEntries)
        result = NVML_ERROR_INSUFFICIENT_SIZE;
    list->numProcArrayEntries = n;
    END(result);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device,
                                                        nvmlProcessUtilizationSample_t *samples,
                                                        unsigned int *count,
                                                        unsigned long long last_seen)
{
    (void)last_seen;
    BEGIN(count);
    USE_INSTANCE;
    if (ci || gpu->mig_current)
        END(NVML_ERROR_NOT_SUPPORTED);
    uint32_t n = 0;
    for (int p = 0; p < SIM_MAX_PROCESSES; p++)
        n += sim_process_alive(&gpu->processes[p]);
    if (!n) {
        *count = 0;
        END(NVML_ERROR_NOT_FOUND);
    }
    if (!samples || *count < n) {
        *count = n;
        END(NVML_ERROR_INSUFFICIENT_SIZE);
    }
    uint32_t filled = 0;
    for (int p = 0; p < SIM_MAX_PROCESSES; p++)
        if (sim_process_alive(&gpu->processes[p]))
            samples[filled++] = (nvmlProcessUtilizationSample_t){
                .pid = gpu->processes[p].pid, .timeStamp = sim_now_ns() / 1000,
                .smUtil = (unsigned)(gpu->activity[SIM_ACT_SM] * 100 / n),
                .memUtil = (unsigned)(gpu->activity[SIM_ACT_DRAM] * 100 / n)};
    *count = n;
    END(NVML_SUCCESS);
}
