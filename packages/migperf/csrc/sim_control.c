/* What the user of the simulator turns: processes, activity, latencies, faults, reset. */
#include "sim_state.h"

#include <string.h>

#define GPU_OK(gpu) (sim && (gpu) < sim->n_gpus)

/* Put a process on a compute instance (or on the whole GPU with SIM_NOT_MIG). */
SIM_EXPORT int migperfSimOccupy(unsigned int gpu, unsigned int gi, unsigned int ci,
                                unsigned int pid, unsigned long long memory_bytes,
                                unsigned int watch)
{
    if (!GPU_OK(gpu) || !pid)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = sim_lock();
    if (result != NVML_SUCCESS)
        return result;
    const struct sim_gpu_state *now = sim_view(gpu);
    uint64_t room = sim->board.memory_mib << 20;
    bool found = gi == SIM_NOT_MIG && !now->mig_current;
    for (int i = 0; i < SIM_MAX_GI; i++)
        for (int c = 0; c < SIM_MAX_CI; c++)
            if (now->gi[i].used && now->gi[i].id == gi && now->gi[i].ci[c].used &&
                now->gi[i].ci[c].id == ci) {
                found = true;
                room = sim->board.profiles[now->gi[i].profile].memory_mib << 20;
            }
    result = found ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_ERROR_NOT_FOUND;
    for (int p = 0; p < SIM_MAX_PROCESSES; p++)
        if (sim_process_alive(&now->processes[p]) && now->processes[p].gi == gi) {
            uint64_t used = now->processes[p].memory_bytes;
            room = room > used ? room - used : 0;
        }
    if (found && memory_bytes > room)
        result = NVML_ERROR_MEMORY;
    for (int p = 0; p < SIM_MAX_PROCESSES && result == NVML_ERROR_INSUFFICIENT_SIZE; p++)
        if (!sim_process_alive(&now->processes[p])) {
            sim_edit(gpu)->processes[p] = (struct sim_process){
                .pid = pid, .gi = gi, .ci = ci, .watch = watch, .memory_bytes = memory_bytes};
            sim_commit(gpu);
            result = NVML_SUCCESS;
        }
    sim_unlock();
    return result;
}

SIM_EXPORT int migperfSimVacate(unsigned int gpu, unsigned int pid)
{
    if (!GPU_OK(gpu))
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = sim_lock();
    if (result != NVML_SUCCESS)
        return result;
    struct sim_gpu_state *state = sim_edit(gpu);
    result = NVML_ERROR_NOT_FOUND;
    for (int p = 0; p < SIM_MAX_PROCESSES; p++)
        if (state->processes[p].pid == pid) {
            memset(&state->processes[p], 0, sizeof state->processes[p]);
            result = NVML_SUCCESS;
        }
    if (result == NVML_SUCCESS)
        sim_commit(gpu);
    sim_unlock();
    return result;
}

/* Ratios 0..1 of one GPU instance, or of the whole GPU with SIM_NOT_MIG. */
SIM_EXPORT int migperfSimSetActivity(unsigned int gpu, unsigned int gi, const double *ratios,
                                     unsigned int count)
{
    if (!GPU_OK(gpu) || !ratios || count > SIM_ACTIVITIES)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned int a = 0; a < count; a++)
        if (!(ratios[a] >= 0 && ratios[a] <= 1))
            return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = sim_lock();
    if (result != NVML_SUCCESS)
        return result;
    struct sim_gpu_state *state = sim_edit(gpu);
    double *target = gi == SIM_NOT_MIG ? state->activity : NULL;
    for (int i = 0; i < SIM_MAX_GI; i++)
        if (state->gi[i].used && state->gi[i].id == gi)
            target = state->gi[i].activity;
    result = target ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
    if (target) {
        sim_advance(state);
        memcpy(target, ratios, count * sizeof *ratios);
        sim_commit(gpu);
    }
    sim_unlock();
    return result;
}

SIM_EXPORT int migperfSimSetLatency(unsigned int kind, unsigned long long microseconds)
{
    if (!sim || kind == SIM_READ || kind >= SIM_KINDS)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = sim_lock();
    if (result != NVML_SUCCESS)
        return result;
    sim->latency_us[kind] = microseconds;
    sim_unlock();
    return NVML_SUCCESS;
}

/* With a virtual clock, latencies are added up instead of slept through. */
SIM_EXPORT int migperfSimVirtualClock(unsigned int on)
{
    nvmlReturn_t result = sim_lock();
    if (result != NVML_SUCCESS)
        return result;
    sim->virtual_latency = on;
    sim_unlock();
    return NVML_SUCCESS;
}

SIM_EXPORT int migperfSimCounters(unsigned long long *calls, unsigned long long *virtual_us,
                                  unsigned long long *recoveries, unsigned int clear)
{
    nvmlReturn_t result = sim_lock();
    if (result != NVML_SUCCESS)
        return result;
    for (int k = 0; k < SIM_KINDS; k++) {
        if (calls)
            calls[k] = sim->calls[k];
        if (clear)
            sim->calls[k] = 0;
    }
    if (virtual_us)
        *virtual_us = sim->virtual_us;
    if (recoveries)
        *recoveries = sim->recoveries;
    if (clear)
        sim->virtual_us = 0;
    sim_unlock();
    return NVML_SUCCESS;
}

SIM_EXPORT int migperfSimAddFaults(const char *script)
{
    return script ? sim_add_faults(script) : NVML_ERROR_INVALID_ARGUMENT;
}

SIM_EXPORT int migperfSimClearFaults(void)
{
    nvmlReturn_t result = sim_lock();
    if (result != NVML_SUCCESS)
        return result;
    memset(sim->faults, 0, sizeof sim->faults);
    sim->n_faults = 0;
    sim_unlock();
    return NVML_SUCCESS;
}

/* A GPU reset: layouts go, a pending mode becomes the mode. Refused while a process runs. */
SIM_EXPORT int migperfSimReset(unsigned int gpu)
{
    if (!GPU_OK(gpu))
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = sim_lock();
    if (result != NVML_SUCCESS)
        return result;
    struct sim_gpu_state *state = sim_edit(gpu);
    for (int p = 0; p < SIM_MAX_PROCESSES && result == NVML_SUCCESS; p++)
        if (sim_process_alive(&state->processes[p]))
            result = NVML_ERROR_IN_USE;
    if (result == NVML_SUCCESS && !sim_may_administer())
        result = NVML_ERROR_NO_PERMISSION;
    if (result == NVML_SUCCESS) {
        sim_advance(state);
        memset(state->gi, 0, sizeof state->gi);
        state->mig_current = state->mig_pending;
        sim_commit(gpu);
    }
    sim_unlock();
    return result;
}

static uint32_t broken_in(const struct sim_gpu_state *gpu)
{
    const struct sim_board *board = &sim->board;
    uint32_t broken = 0, taken = 0, media = 0, used[SIM_MAX_PROFILES] = {0};
    uint64_t ids = 0;
    for (int i = 0; i < SIM_MAX_GI; i++) {
        const struct sim_gi *gi = &gpu->gi[i];
        if (!gi->used)
            continue;
        const struct sim_profile *p = &board->profiles[gi->profile];
        uint32_t mask = ((1u << p->size) - 1u) << gi->start, slots = 0, cut_ids = 0;
        bool legal = false;
        for (uint32_t s = 0; s < p->n_starts; s++)
            legal |= p->starts[s] == gi->start;
        broken += !legal + ((taken & mask) != 0) + ((ids >> gi->id & 1) != 0) + !gi->generation;
        taken |= mask;
        ids |= 1ull << gi->id;
        media += p->media_extension;
        used[gi->profile]++;
        for (int c = 0; c < SIM_MAX_CI; c++) {
            const struct sim_ci *ci = &gi->ci[c];
            if (!ci->used)
                continue;
            const struct sim_compute_profile *cp = &p->compute[ci->profile];
            uint32_t bits = ((1u << cp->slices) - 1u) << ci->start;
            broken += ((slots & bits) != 0) + ((bits >> p->slices) != 0) +
                      ((cut_ids >> ci->id & 1) != 0);
            slots |= bits;
            cut_ids |= 1u << ci->id;
        }
    }
    for (uint32_t p = 0; p < board->n_profiles; p++)
        broken += used[p] > board->profiles[p].count;
    return broken + (media > 1) + (!gpu->mig_current && taken);
}

/* Count broken invariants of the committed state, all GPUs, under one hold of the lock. */
SIM_EXPORT int migperfSimCheck(unsigned int *broken)
{
    if (!broken)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = sim_lock();
    if (result != NVML_SUCCESS)
        return result;
    *broken = 0;
    for (uint32_t g = 0; g < sim->n_gpus; g++)
        *broken += broken_in(sim_view(g));
    sim_unlock();
    return NVML_SUCCESS;
}

SIM_EXPORT const char *migperfSimBoard(void)
{
    return sim ? sim->board.name : NULL;
}

SIM_EXPORT unsigned int migperfSimBoardBytes(void)
{
    return (unsigned int)sizeof(struct sim_board);
}
