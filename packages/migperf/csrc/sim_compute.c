/* Compute instances inside a GPU instance. */
#include "sim_state.h"

#include <stdio.h>
#include <string.h>

static nvmlReturn_t check(nvmlGpuInstance_t instance, struct sim_handle *handle)
{
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    *handle = sim_unpack(instance);
    return handle->tag == SIM_TAG_GI ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

#define BEGIN(condition)                                                                           \
    struct sim_handle h;                                                                           \
    nvmlReturn_t result = check(instance, &h);                                                     \
    if (result == NVML_SUCCESS && !(condition))                                                    \
        result = NVML_ERROR_INVALID_ARGUMENT;                                                      \
    if (result == NVML_SUCCESS)                                                                    \
        result = sim_enter(__func__, SIM_READ, h.gpu, SIM_NOT_MIG);                                \
    if (result != NVML_SUCCESS)                                                                    \
        return result;                                                                             \
    const struct sim_gi *gi = sim_find_gi(sim_view(h.gpu), h);                                     \
    if (!gi)                                                                                       \
        return sim_leave(__func__, SIM_READ, h.gpu, SIM_NOT_MIG, NVML_ERROR_INVALID_ARGUMENT)
#define END(code) return sim_leave(__func__, SIM_READ, h.gpu, gi->id, code)

static const struct sim_profile *gi_profile(const struct sim_gi *gi)
{
    return &sim->board.profiles[gi->profile];
}

static const struct sim_compute_profile *by_enum(const struct sim_gi *gi, unsigned int profile)
{
    const struct sim_profile *p = gi_profile(gi);
    for (uint32_t i = 0; i < p->n_compute; i++)
        if (p->compute[i].profile_enum == profile)
            return &p->compute[i];
    return NULL;
}

static const struct sim_compute_profile *by_id(const struct sim_gi *gi, unsigned int id)
{
    const struct sim_profile *p = gi_profile(gi);
    for (uint32_t i = 0; i < p->n_compute; i++)
        if (p->compute[i].id == id)
            return &p->compute[i];
    return NULL;
}

static uint32_t mask_of(const struct sim_compute_profile *p, uint32_t start)
{
    return ((1u << p->slices) - 1u) << start;
}

static uint32_t occupied(const struct sim_gi *gi)
{
    uint32_t mask = 0;
    for (int c = 0; c < SIM_MAX_CI; c++)
        if (gi->ci[c].used)
            mask |= mask_of(&gi_profile(gi)->compute[gi->ci[c].profile], gi->ci[c].start);
    return mask;
}

static bool legal_start(const struct sim_compute_profile *p, uint32_t start)
{
    for (uint32_t i = 0; i < p->n_starts; i++)
        if (p->starts[i] == start)
            return true;
    return false;
}

static void name_of(const struct sim_gi *gi, const struct sim_compute_profile *c, char out[96])
{
    const struct sim_profile *p = gi_profile(gi);
    if (c->slices == p->slices)
        snprintf(out, 96, "MIG %.80s", p->name);
    else
        snprintf(out, 96, "MIG %uc.%.80s", c->slices, p->name);
}

static void fill(const struct sim_gi *gi, const struct sim_compute_profile *c,
                 nvmlComputeInstanceProfileInfo_t *out)
{
    const struct sim_profile *p = gi_profile(gi);
    *out = (nvmlComputeInstanceProfileInfo_t){
        .id = c->id, .sliceCount = c->slices, .instanceCount = c->count,
        .multiprocessorCount = c->multiprocessors, .sharedCopyEngineCount = p->copy_engines,
        .sharedDecoderCount = p->decoders, .sharedEncoderCount = p->encoders,
        .sharedJpegCount = p->jpeg, .sharedOfaCount = p->ofa};
}

SIM_EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfo(
    nvmlGpuInstance_t instance, unsigned int profile, unsigned int engine,
    nvmlComputeInstanceProfileInfo_t *info)
{
    BEGIN(info && profile < 9 && engine == 0);
    const struct sim_compute_profile *c = by_enum(gi, profile);
    if (c)
        fill(gi, c, info);
    END(c ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED);
}

SIM_EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfoV(
    nvmlGpuInstance_t instance, unsigned int profile, unsigned int engine,
    nvmlComputeInstanceProfileInfo_v2_t *info)
{
    BEGIN(info && profile < 9 && engine == 0);
    const struct sim_compute_profile *c = by_enum(gi, profile);
    if (!c)
        END(NVML_ERROR_NOT_SUPPORTED);
    bool v3 = info->version == ((unsigned)sizeof(nvmlComputeInstanceProfileInfo_v3_t) | 3u << 24);
    if (!v3 && info->version != ((unsigned)sizeof *info | 2u << 24))
        END(NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    nvmlComputeInstanceProfileInfo_t v1;
    fill(gi, c, &v1);
    /* Version 3 appends the capabilities; everything before them is common. */
    info->id = v1.id;
    info->sliceCount = v1.sliceCount;
    info->instanceCount = v1.instanceCount;
    info->multiprocessorCount = v1.multiprocessorCount;
    info->sharedCopyEngineCount = v1.sharedCopyEngineCount;
    info->sharedDecoderCount = v1.sharedDecoderCount;
    info->sharedEncoderCount = v1.sharedEncoderCount;
    info->sharedJpegCount = v1.sharedJpegCount;
    info->sharedOfaCount = v1.sharedOfaCount;
    name_of(gi, c, info->name);
    if (v3)
        ((nvmlComputeInstanceProfileInfo_v3_t *)(void *)info)->capabilities =
            gi_profile(gi)->graphics ? 1u : 0u;
    END(NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceRemainingCapacity(
    nvmlGpuInstance_t instance, unsigned int id, unsigned int *count)
{
    BEGIN(count);
    const struct sim_compute_profile *c = by_id(gi, id);
    if (!c)
        END(NVML_ERROR_INVALID_ARGUMENT);
    uint32_t mask = occupied(gi), room = 0;
    for (uint32_t i = 0; i < c->n_starts; i++)
        room += !(mask & mask_of(c, c->starts[i]));
    *count = room;
    END(NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstancePossiblePlacements(
    nvmlGpuInstance_t instance, unsigned int id, nvmlComputeInstancePlacement_t *placements,
    unsigned int *count)
{
    BEGIN(count);
    const struct sim_compute_profile *c = by_id(gi, id);
    if (!c)
        END(NVML_ERROR_INVALID_ARGUMENT);
    if (placements && *count < c->n_starts) {
        *count = c->n_starts;
        END(NVML_ERROR_INSUFFICIENT_SIZE);
    }
    for (uint32_t i = 0; placements && i < c->n_starts; i++)
        placements[i] = (nvmlComputeInstancePlacement_t){c->starts[i], c->slices};
    *count = c->n_starts;
    END(NVML_SUCCESS);
}

/* MIG device indices follow GPU instance id, then compute instance id. They are dealt anew at
 * every creation; a destruction leaves a hole until then. */
static void deal_indices(struct sim_gpu_state *gpu)
{
    uint32_t next = 0;
    for (uint32_t id = 0; id < 32; id++)
        for (int i = 0; i < SIM_MAX_GI; i++) {
            struct sim_gi *gi = &gpu->gi[i];
            if (!gi->used || gi->id != id)
                continue;
            for (uint32_t c = 0; c < SIM_MAX_CI; c++)
                for (int k = 0; k < SIM_MAX_CI; k++)
                    if (gi->ci[k].used && gi->ci[k].id == c)
                        gi->ci[k].device_index = next++;
        }
}

static nvmlReturn_t create_ci(const char *function, nvmlGpuInstance_t instance, unsigned int id,
                              const nvmlComputeInstancePlacement_t *wanted,
                              nvmlComputeInstance_t *out)
{
    struct sim_handle h;
    nvmlReturn_t result = check(instance, &h);
    if (result != NVML_SUCCESS)
        return result;
    if (!out)
        return NVML_ERROR_INVALID_ARGUMENT;
    result = sim_enter(function, SIM_CI_CREATE, h.gpu, SIM_NOT_MIG);
    if (result != NVML_SUCCESS)
        return result;
    const struct sim_gi *gi = sim_find_gi(sim_view(h.gpu), h);
    const struct sim_compute_profile *c = gi ? by_id(gi, id) : NULL;
    uint32_t given = gi ? gi->id : SIM_NOT_MIG, start = SIM_NOT_MIG;
    int slot = -1;
    if (!gi || !c || (wanted && (wanted->size != c->slices || !legal_start(c, wanted->start)))) {
        result = NVML_ERROR_INVALID_ARGUMENT;
    } else if (!sim_may_administer()) {
        result = NVML_ERROR_NO_PERMISSION;
    } else {
        uint32_t mask = occupied(gi);
        if (wanted) {
            start = mask & mask_of(c, wanted->start) ? SIM_NOT_MIG : wanted->start;
        } else {
            for (uint32_t i = 0; i < c->n_starts && start == SIM_NOT_MIG; i++)
                if (!(mask & mask_of(c, c->starts[i])))
                    start = c->starts[i];
        }
        for (int k = 0; k < SIM_MAX_CI && slot < 0; k++)
            if (!gi->ci[k].used)
                slot = k;
        if (start == SIM_NOT_MIG || slot < 0)
            result = NVML_ERROR_INSUFFICIENT_RESOURCES;
    }
    if (result == NVML_SUCCESS) {
        struct sim_gpu_state *gpu = sim_edit(h.gpu);
        struct sim_ci *ci = &gpu->gi[h.gi].ci[slot];
        /* Ids count up from 0 inside a GPU instance; the slot is the lowest free one. */
        *ci = (struct sim_ci){.used = 1, .id = (uint32_t)slot, .start = start,
                              .profile = (uint32_t)(c - gi_profile(gi)->compute),
                              .generation = ++gpu->generation};
        deal_indices(gpu);
        *out = sim_pack((struct sim_handle){SIM_TAG_CI, h.gpu, h.gi, (uint32_t)slot,
                                            ci->generation});
        sim_commit(h.gpu);
    }
    return sim_leave(function, SIM_CI_CREATE, h.gpu, given, result);
}

SIM_EXPORT nvmlReturn_t nvmlGpuInstanceCreateComputeInstance(nvmlGpuInstance_t instance,
                                                             unsigned int id,
                                                             nvmlComputeInstance_t *out)
{
    return create_ci(__func__, instance, id, NULL, out);
}

SIM_EXPORT nvmlReturn_t nvmlGpuInstanceCreateComputeInstanceWithPlacement(
    nvmlGpuInstance_t instance, unsigned int id, const nvmlComputeInstancePlacement_t *placement,
    nvmlComputeInstance_t *out)
{
    if (!placement)
        return NVML_ERROR_INVALID_ARGUMENT;
    return create_ci(__func__, instance, id, placement, out);
}

SIM_EXPORT nvmlReturn_t nvmlComputeInstanceDestroy(nvmlComputeInstance_t instance)
{
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    struct sim_handle h = sim_unpack(instance);
    if (h.tag != SIM_TAG_CI)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = sim_enter(__func__, SIM_CI_DESTROY, h.gpu, SIM_NOT_MIG);
    if (result != NVML_SUCCESS)
        return result;
    const struct sim_gpu_state *now = sim_view(h.gpu);
    const struct sim_ci *ci = sim_find_ci(now, h);
    uint32_t id = ci ? now->gi[h.gi].id : SIM_NOT_MIG;
    if (!ci) {
        result = NVML_ERROR_INVALID_ARGUMENT;
    } else if (!sim_may_administer()) {
        result = NVML_ERROR_NO_PERMISSION;
    } else {
        for (int p = 0; p < SIM_MAX_PROCESSES && result == NVML_SUCCESS; p++)
            if (sim_process_alive(&now->processes[p]) && now->processes[p].gi == id &&
                now->processes[p].ci == ci->id)
                result = NVML_ERROR_IN_USE;
        if (result == NVML_SUCCESS) {
            struct sim_gpu_state *gpu = sim_edit(h.gpu);
            memset(&gpu->gi[h.gi].ci[h.ci], 0, sizeof gpu->gi[h.gi].ci[h.ci]);
            sim_commit(h.gpu);
        }
    }
    return sim_leave(__func__, SIM_CI_DESTROY, h.gpu, id, result);
}

SIM_EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstances(nvmlGpuInstance_t instance,
                                                           unsigned int id,
                                                           nvmlComputeInstance_t *instances,
                                                           unsigned int *count)
{
    BEGIN(instances && count);
    const struct sim_compute_profile *c = by_id(gi, id);
    *count = 0;
    if (!c)
        END(NVML_ERROR_INVALID_ARGUMENT);
    if (!sim_may_administer())
        END(NVML_ERROR_NO_PERMISSION);
    for (uint32_t k = 0; k < SIM_MAX_CI; k++)
        if (gi->ci[k].used && &gi_profile(gi)->compute[gi->ci[k].profile] == c)
            instances[(*count)++] = sim_pack(
                (struct sim_handle){SIM_TAG_CI, h.gpu, h.gi, k, gi->ci[k].generation});
    END(NVML_SUCCESS);
}

SIM_EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceById(nvmlGpuInstance_t instance,
                                                              unsigned int id,
                                                              nvmlComputeInstance_t *out)
{
    BEGIN(out);
    for (uint32_t k = 0; k < SIM_MAX_CI; k++)
        if (gi->ci[k].used && gi->ci[k].id == id) {
            *out = sim_pack(
                (struct sim_handle){SIM_TAG_CI, h.gpu, h.gi, k, gi->ci[k].generation});
            END(NVML_SUCCESS);
        }
    END(NVML_ERROR_NOT_FOUND);
}

SIM_EXPORT nvmlReturn_t nvmlComputeInstanceGetInfo_v2(nvmlComputeInstance_t instance,
                                                      nvmlComputeInstanceInfo_t *info)
{
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    struct sim_handle h = sim_unpack(instance);
    if (h.tag != SIM_TAG_CI || !info)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = sim_enter(__func__, SIM_READ, h.gpu, SIM_NOT_MIG);
    if (result != NVML_SUCCESS)
        return result;
    const struct sim_gpu_state *gpu = sim_view(h.gpu);
    const struct sim_ci *ci = sim_find_ci(gpu, h);
    if (!ci) {
        result = NVML_ERROR_INVALID_ARGUMENT;
    } else {
        const struct sim_gi *gi = &gpu->gi[h.gi];
        const struct sim_compute_profile *c = &gi_profile(gi)->compute[ci->profile];
        *info = (nvmlComputeInstanceInfo_t){
            .device = sim_pack((struct sim_handle){SIM_TAG_GPU, h.gpu, 0, 0, 0}),
            .gpuInstance =
                sim_pack((struct sim_handle){SIM_TAG_GI, h.gpu, h.gi, 0, gi->generation}),
            .id = ci->id, .profileId = c->id, .placement = {ci->start, c->slices}};
    }
    return sim_leave(__func__, SIM_READ, h.gpu, SIM_NOT_MIG, result);
}

SIM_EXPORT nvmlReturn_t nvmlComputeInstanceGetInfo(nvmlComputeInstance_t instance,
                                                   nvmlComputeInstanceInfo_t *info)
{
    return nvmlComputeInstanceGetInfo_v2(instance, info);
}
