/* MIG mode, GPU instances: queries, creation, destruction (nvml.h, "Multi Instance GPU"). */
#include "sim_state.h"

#include <stdio.h>
#include <string.h>

/* Check a device handle of the physical kind; the caller holds no lock yet. */
static nvmlReturn_t physical(nvmlDevice_t device, struct sim_handle *handle)
{
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    *handle = sim_unpack(device);
    return handle->tag == SIM_TAG_GPU ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

#define OPEN(kind, gpu, gi)                                                                        \
    nvmlReturn_t result = sim_enter(__func__, kind, gpu, gi);                                      \
    if (result != NVML_SUCCESS)                                                                    \
        return result
#define CLOSE(kind, gpu, gi, code) return sim_leave(__func__, kind, gpu, gi, code)

static const struct sim_profile *profile_by_enum(unsigned int profile)
{
    for (uint32_t i = 0; i < sim->board.n_profiles; i++)
        if (sim->board.profiles[i].profile_enum == profile)
            return &sim->board.profiles[i];
    return NULL;
}

static const struct sim_profile *profile_by_id(unsigned int id)
{
    for (uint32_t i = 0; i < sim->board.n_profiles; i++)
        if (sim->board.profiles[i].id == id)
            return &sim->board.profiles[i];
    return NULL;
}

static uint32_t mask_of(const struct sim_profile *profile, uint32_t start)
{
    return ((1u << profile->size) - 1u) << start;
}

static uint32_t occupied(const struct sim_gpu_state *gpu)
{
    uint32_t mask = 0;
    for (int i = 0; i < SIM_MAX_GI; i++)
        if (gpu->gi[i].used)
            mask |= mask_of(&sim->board.profiles[gpu->gi[i].profile], gpu->gi[i].start);
    return mask;
}

/* How many more of a profile its count and the media rule admit, leaving room aside. */
static uint32_t allowance(const struct sim_gpu_state *gpu, const struct sim_profile *profile)
{
    uint32_t used = 0;
    bool media = false;
    for (int i = 0; i < SIM_MAX_GI; i++) {
        if (!gpu->gi[i].used)
            continue;
        const struct sim_profile *other = &sim->board.profiles[gpu->gi[i].profile];
        used += other == profile;
        media |= other->media_extension && profile->media_extension;
    }
    return media || used >= profile->count ? 0 : profile->count - used;
}

static bool legal_start(const struct sim_profile *profile, uint32_t start)
{
    for (uint32_t i = 0; i < profile->n_starts; i++)
        if (profile->starts[i] == start)
            return true;
    return false;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current,
                                             unsigned int *pending)
{
    struct sim_handle h;
    nvmlReturn_t bad = physical(device, &h);
    if (bad != NVML_SUCCESS)
        return bad;
    if (!current || !pending)
        return NVML_ERROR_INVALID_ARGUMENT;
    OPEN(SIM_READ, h.gpu, SIM_NOT_MIG);
    *current = sim_view(h.gpu)->mig_current;
    *pending = sim_view(h.gpu)->mig_pending;
    CLOSE(SIM_READ, h.gpu, SIM_NOT_MIG, NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceSetMigMode(nvmlDevice_t device, unsigned int mode,
                                             nvmlReturn_t *activation)
{
    struct sim_handle h;
    nvmlReturn_t bad = physical(device, &h);
    if (bad != NVML_SUCCESS)
        return bad;
    if (mode > 1 || !activation)
        return NVML_ERROR_INVALID_ARGUMENT;
    OPEN(SIM_MODE_CHANGE, h.gpu, SIM_NOT_MIG);
    if (!sim_may_administer())
        CLOSE(SIM_READ, h.gpu, SIM_NOT_MIG, NVML_ERROR_NO_PERMISSION);
    struct sim_gpu_state *gpu = sim_edit(h.gpu);
    gpu->mig_pending = mode;
    *activation = NVML_SUCCESS;
    if (mode != gpu->mig_current) {
        bool busy = false;
        for (int p = 0; p < SIM_MAX_PROCESSES; p++)
            busy |= sim_process_alive(&gpu->processes[p]);
        for (int i = 0; i < SIM_MAX_GI; i++)
            busy |= gpu->gi[i].used != 0;
        if (busy)
            *activation = NVML_ERROR_IN_USE;
        else if (sim->require_reset)
            *activation = NVML_ERROR_RESET_REQUIRED;
        else
            gpu->mig_current = mode;
    }
    sim_commit(h.gpu);
    CLOSE(SIM_MODE_CHANGE, h.gpu, SIM_NOT_MIG, NVML_SUCCESS);
}

static void fill_v1(const struct sim_profile *p, nvmlGpuInstanceProfileInfo_t *out)
{
    *out = (nvmlGpuInstanceProfileInfo_t){
        .id = p->id, .sliceCount = p->slices, .instanceCount = p->count,
        .multiprocessorCount = p->multiprocessors, .copyEngineCount = p->copy_engines,
        .decoderCount = p->decoders, .encoderCount = p->encoders, .jpegCount = p->jpeg,
        .ofaCount = p->ofa, .memorySizeMB = p->memory_mib};
}

static nvmlReturn_t fill_v(const struct sim_profile *p, nvmlGpuInstanceProfileInfo_v2_t *out)
{
    if (out->version == ((unsigned)sizeof(nvmlGpuInstanceProfileInfo_v2_t) | 2u << 24)) {
        nvmlGpuInstanceProfileInfo_t v1;
        fill_v1(p, &v1);
        out->id = v1.id;
        out->isP2pSupported = 0;
        out->sliceCount = v1.sliceCount;
        out->instanceCount = v1.instanceCount;
        out->multiprocessorCount = v1.multiprocessorCount;
        out->copyEngineCount = v1.copyEngineCount;
        out->decoderCount = v1.decoderCount;
        out->encoderCount = v1.encoderCount;
        out->jpegCount = v1.jpegCount;
        out->ofaCount = v1.ofaCount;
        out->memorySizeMB = v1.memorySizeMB;
        snprintf(out->name, sizeof out->name, "MIG %.80s", p->name);
        return NVML_SUCCESS;
    }
    nvmlGpuInstanceProfileInfo_v3_t *v3 = (nvmlGpuInstanceProfileInfo_v3_t *)(void *)out;
    if (v3->version != ((unsigned)sizeof *v3 | 3u << 24))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    unsigned int version = v3->version;
    memset(v3, 0, sizeof *v3);
    *v3 = (nvmlGpuInstanceProfileInfo_v3_t){
        .version = version, .id = p->id, .sliceCount = p->slices, .instanceCount = p->count,
        .multiprocessorCount = p->multiprocessors, .copyEngineCount = p->copy_engines,
        .decoderCount = p->decoders, .encoderCount = p->encoders, .jpegCount = p->jpeg,
        .ofaCount = p->ofa, .memorySizeMB = p->memory_mib, .capabilities = p->graphics ? 2u : 0u};
    snprintf(v3->name, sizeof v3->name, "MIG %.80s", p->name);
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfo(nvmlDevice_t device,
                                                            unsigned int profile,
                                                            nvmlGpuInstanceProfileInfo_t *info)
{
    struct sim_handle h;
    nvmlReturn_t bad = physical(device, &h);
    if (bad != NVML_SUCCESS)
        return bad;
    if (!info || profile >= 18)
        return NVML_ERROR_INVALID_ARGUMENT;
    OPEN(SIM_READ, h.gpu, SIM_NOT_MIG);
    const struct sim_profile *p = profile_by_enum(profile);
    if (!sim_view(h.gpu)->mig_current || !p)
        result = NVML_ERROR_NOT_SUPPORTED;
    else
        fill_v1(p, info);
    CLOSE(SIM_READ, h.gpu, SIM_NOT_MIG, result);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoV(nvmlDevice_t device,
                                                             unsigned int profile,
                                                             nvmlGpuInstanceProfileInfo_v2_t *info)
{
    struct sim_handle h;
    nvmlReturn_t bad = physical(device, &h);
    if (bad != NVML_SUCCESS)
        return bad;
    if (!info || profile >= 18)
        return NVML_ERROR_INVALID_ARGUMENT;
    OPEN(SIM_READ, h.gpu, SIM_NOT_MIG);
    const struct sim_profile *p = profile_by_enum(profile);
    if (!sim_view(h.gpu)->mig_current || !p)
        result = NVML_ERROR_NOT_SUPPORTED;
    else
        result = fill_v(p, info);
    CLOSE(SIM_READ, h.gpu, SIM_NOT_MIG, result);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoByIdV(
    nvmlDevice_t device, unsigned int id, nvmlGpuInstanceProfileInfo_v2_t *info)
{
    struct sim_handle h;
    nvmlReturn_t bad = physical(device, &h);
    if (bad != NVML_SUCCESS)
        return bad;
    if (!info)
        return NVML_ERROR_INVALID_ARGUMENT;
    OPEN(SIM_READ, h.gpu, SIM_NOT_MIG);
    const struct sim_profile *p = profile_by_id(id);
    if (!sim_view(h.gpu)->mig_current)
        result = NVML_ERROR_NOT_SUPPORTED;
    else
        result = p ? fill_v(p, info) : NVML_ERROR_INVALID_ARGUMENT;
    CLOSE(SIM_READ, h.gpu, SIM_NOT_MIG, result);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements_v2(
    nvmlDevice_t device, unsigned int id, nvmlGpuInstancePlacement_t *placements,
    unsigned int *count)
{
    struct sim_handle h;
    nvmlReturn_t bad = physical(device, &h);
    if (bad != NVML_SUCCESS)
        return bad;
    if (!count)
        return NVML_ERROR_INVALID_ARGUMENT;
    OPEN(SIM_READ, h.gpu, SIM_NOT_MIG);
    const struct sim_profile *p = profile_by_id(id);
    if (!p) {
        result = NVML_ERROR_INVALID_ARGUMENT;
    } else if (placements && *count < p->n_starts) {
        *count = p->n_starts;
        result = NVML_ERROR_INSUFFICIENT_SIZE;
    } else {
        uint32_t n = 0;
        for (uint32_t start = 0; placements && start < sim->board.memory_slices; start++)
            if (legal_start(p, start))
                placements[n++] = (nvmlGpuInstancePlacement_t){start, p->size};
        *count = p->n_starts;
    }
    CLOSE(SIM_READ, h.gpu, SIM_NOT_MIG, result);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements(
    nvmlDevice_t device, unsigned int id, nvmlGpuInstancePlacement_t *placements,
    unsigned int *count)
{
    if (!placements)
        return NVML_ERROR_INVALID_ARGUMENT; /* the first version has no size query */
    unsigned int room = SIM_MAX_STARTS;
    nvmlReturn_t result =
        nvmlDeviceGetGpuInstancePossiblePlacements_v2(device, id, placements, &room);
    if (count)
        *count = room;
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceRemainingCapacity(nvmlDevice_t device,
                                                                  unsigned int id,
                                                                  unsigned int *count)
{
    struct sim_handle h;
    nvmlReturn_t bad = physical(device, &h);
    if (bad != NVML_SUCCESS)
        return bad;
    if (!count)
        return NVML_ERROR_INVALID_ARGUMENT;
    OPEN(SIM_READ, h.gpu, SIM_NOT_MIG);
    const struct sim_gpu_state *gpu = sim_view(h.gpu);
    const struct sim_profile *p = profile_by_id(id);
    if (!gpu->mig_current) {
        result = NVML_ERROR_NOT_SUPPORTED;
    } else if (!p) {
        result = NVML_ERROR_INVALID_ARGUMENT;
    } else {
        uint32_t mask = occupied(gpu), room = 0, limit = allowance(gpu, p);
        for (uint32_t i = 0; i < p->n_starts; i++)
            room += !(mask & mask_of(p, p->starts[i]));
        *count = room < limit ? room : limit;
    }
    CLOSE(SIM_READ, h.gpu, SIM_NOT_MIG, result);
}

/* Node of a binary tree over the memory slices. */
static uint32_t instance_id(uint32_t start, uint32_t size)
{
    return sim->board.memory_slices / size - 1 + start / size;
}

static nvmlReturn_t create_gi(const char *function, nvmlDevice_t device, unsigned int id,
                              const nvmlGpuInstancePlacement_t *wanted, nvmlGpuInstance_t *out)
{
    struct sim_handle h;
    nvmlReturn_t result = physical(device, &h);
    if (result != NVML_SUCCESS)
        return result;
    if (!out)
        return NVML_ERROR_INVALID_ARGUMENT;
    result = sim_enter(function, SIM_GI_CREATE, h.gpu, SIM_NOT_MIG);
    if (result != NVML_SUCCESS)
        return result;
    const struct sim_gpu_state *now = sim_view(h.gpu);
    const struct sim_profile *p = profile_by_id(id);
    uint32_t start = SIM_NOT_MIG, given = SIM_NOT_MIG;
    int slot = -1;
    if (!now->mig_current) {
        result = NVML_ERROR_NOT_SUPPORTED;
    } else if (!sim_may_administer()) {
        result = NVML_ERROR_NO_PERMISSION;
    } else if (!p || (wanted && (wanted->size != p->size || !legal_start(p, wanted->start)))) {
        result = NVML_ERROR_INVALID_ARGUMENT;
    } else {
        uint32_t mask = occupied(now);
        if (allowance(now, p)) {
            if (wanted) {
                start = mask & mask_of(p, wanted->start) ? SIM_NOT_MIG : wanted->start;
            } else {
                for (uint32_t i = 0; i < p->n_starts && start == SIM_NOT_MIG; i++)
                    if (!(mask & mask_of(p, p->starts[i])))
                        start = p->starts[i];
            }
        }
        for (int i = 0; i < SIM_MAX_GI && slot < 0; i++)
            if (!now->gi[i].used)
                slot = i;
        if (start == SIM_NOT_MIG || slot < 0)
            result = NVML_ERROR_INSUFFICIENT_RESOURCES;
    }
    if (result == NVML_SUCCESS) {
        struct sim_gpu_state *gpu = sim_edit(h.gpu);
        sim_advance(gpu);
        struct sim_gi *gi = &gpu->gi[slot];
        memset(gi, 0, sizeof *gi);
        gi->used = 1;
        gi->start = start;
        gi->profile = (uint32_t)(p - sim->board.profiles);
        given = gi->id = instance_id(start, p->size);
        gi->generation = ++gpu->generation;
        *out = sim_pack((struct sim_handle){SIM_TAG_GI, h.gpu, (uint32_t)slot, 0, gi->generation});
        sim_commit(h.gpu);
    }
    return sim_leave(function, SIM_GI_CREATE, h.gpu, given, result);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceCreateGpuInstance(nvmlDevice_t device, unsigned int id,
                                                    nvmlGpuInstance_t *out)
{
    return create_gi(__func__, device, id, NULL, out);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceCreateGpuInstanceWithPlacement(
    nvmlDevice_t device, unsigned int id, const nvmlGpuInstancePlacement_t *placement,
    nvmlGpuInstance_t *out)
{
    if (!placement)
        return NVML_ERROR_INVALID_ARGUMENT;
    return create_gi(__func__, device, id, placement, out);
}

SIM_EXPORT nvmlReturn_t nvmlGpuInstanceDestroy(nvmlGpuInstance_t instance)
{
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    struct sim_handle h = sim_unpack(instance);
    if (h.tag != SIM_TAG_GI)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = sim_lock();
    if (result != NVML_SUCCESS)
        return result;
    const struct sim_gi *seen = sim_find_gi(sim_view(h.gpu), h);
    uint32_t id = seen ? seen->id : SIM_NOT_MIG;
    sim_unlock();
    result = sim_enter(__func__, SIM_GI_DESTROY, h.gpu, id);
    if (result != NVML_SUCCESS)
        return result;
    const struct sim_gpu_state *now = sim_view(h.gpu);
    const struct sim_gi *gi = sim_find_gi(now, h);
    if (!gi) {
        result = NVML_ERROR_INVALID_ARGUMENT;
    } else if (!sim_may_administer()) {
        result = NVML_ERROR_NO_PERMISSION;
    } else {
        bool busy = false;
        for (int c = 0; c < SIM_MAX_CI; c++)
            busy |= gi->ci[c].used != 0;
        for (int p = 0; p < SIM_MAX_PROCESSES; p++)
            busy |= sim_process_alive(&now->processes[p]) && now->processes[p].gi == gi->id;
        if (busy) {
            result = NVML_ERROR_IN_USE;
        } else {
            struct sim_gpu_state *gpu = sim_edit(h.gpu);
            sim_advance(gpu);
            memset(&gpu->gi[h.gi], 0, sizeof gpu->gi[h.gi]);
            sim_commit(h.gpu);
        }
    }
    return sim_leave(__func__, SIM_GI_DESTROY, h.gpu, id, result);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGpuInstances(nvmlDevice_t device, unsigned int id,
                                                  nvmlGpuInstance_t *instances,
                                                  unsigned int *count)
{
    struct sim_handle h;
    nvmlReturn_t bad = physical(device, &h);
    if (bad != NVML_SUCCESS)
        return bad;
    if (!instances || !count)
        return NVML_ERROR_INVALID_ARGUMENT;
    OPEN(SIM_READ, h.gpu, SIM_NOT_MIG);
    const struct sim_gpu_state *gpu = sim_view(h.gpu);
    const struct sim_profile *p = profile_by_id(id);
    *count = 0;
    if (!gpu->mig_current) {
        result = NVML_ERROR_NOT_SUPPORTED;
    } else if (!p) {
        result = NVML_ERROR_INVALID_ARGUMENT;
    } else if (!sim_may_administer()) {
        result = NVML_ERROR_NO_PERMISSION;
    } else {
        for (uint32_t i = 0; i < SIM_MAX_GI; i++)
            if (gpu->gi[i].used && &sim->board.profiles[gpu->gi[i].profile] == p)
                instances[(*count)++] = sim_pack(
                    (struct sim_handle){SIM_TAG_GI, h.gpu, i, 0, gpu->gi[i].generation});
    }
    CLOSE(SIM_READ, h.gpu, SIM_NOT_MIG, result);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceById(nvmlDevice_t device, unsigned int id,
                                                     nvmlGpuInstance_t *instance)
{
    struct sim_handle h;
    nvmlReturn_t bad = physical(device, &h);
    if (bad != NVML_SUCCESS)
        return bad;
    if (!instance)
        return NVML_ERROR_INVALID_ARGUMENT;
    OPEN(SIM_READ, h.gpu, id);
    const struct sim_gpu_state *gpu = sim_view(h.gpu);
    result = gpu->mig_current ? NVML_ERROR_NOT_FOUND : NVML_ERROR_NOT_SUPPORTED;
    for (uint32_t i = 0; gpu->mig_current && i < SIM_MAX_GI; i++)
        if (gpu->gi[i].used && gpu->gi[i].id == id) {
            *instance =
                sim_pack((struct sim_handle){SIM_TAG_GI, h.gpu, i, 0, gpu->gi[i].generation});
            result = NVML_SUCCESS;
        }
    CLOSE(SIM_READ, h.gpu, id, result);
}

SIM_EXPORT nvmlReturn_t nvmlGpuInstanceGetInfo(nvmlGpuInstance_t instance,
                                               nvmlGpuInstanceInfo_t *info)
{
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    struct sim_handle h = sim_unpack(instance);
    if (h.tag != SIM_TAG_GI || !info)
        return NVML_ERROR_INVALID_ARGUMENT;
    OPEN(SIM_READ, h.gpu, SIM_NOT_MIG);
    const struct sim_gi *gi = sim_find_gi(sim_view(h.gpu), h);
    if (!gi) {
        result = NVML_ERROR_INVALID_ARGUMENT;
    } else {
        const struct sim_profile *p = &sim->board.profiles[gi->profile];
        *info = (nvmlGpuInstanceInfo_t){
            .device = sim_pack((struct sim_handle){SIM_TAG_GPU, h.gpu, 0, 0, 0}),
            .id = gi->id, .profileId = p->id, .placement = {gi->start, p->size}};
    }
    CLOSE(SIM_READ, h.gpu, SIM_NOT_MIG, result);
}
