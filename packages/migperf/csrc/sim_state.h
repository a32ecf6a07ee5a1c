/* State of the simulated machine: one file, mapped by every process that uses it. */
#ifndef MIGPERF_SIM_STATE_H
#define MIGPERF_SIM_STATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nvml_abi.h"

#define SIM_EXPORT __attribute__((visibility("default")))
#define SIM_MAX_GPUS 16
#define SIM_MAX_PROFILES 16
#define SIM_MAX_STARTS 8
#define SIM_MAX_COMPUTE_PROFILES 6
#define SIM_MAX_GI 8
#define SIM_MAX_CI 8
#define SIM_MAX_PROCESSES 128
#define SIM_MAX_FAULTS 32
#define SIM_ACTIVITIES 8
#define SIM_NOT_MIG 0xFFFFFFFFu

/* The board table, filled by the Python side from boards/<name>.json (migperf/nvml/sim.py). */
struct sim_compute_profile {
    uint32_t slices, profile_enum, id, count, multiprocessors, n_starts;
    uint32_t starts[SIM_MAX_STARTS];
};
struct sim_profile {
    char name[96];
    uint32_t profile_enum, id, slices, size, count, multiprocessors;
    uint32_t copy_engines, decoders, encoders, jpeg, ofa, media_extension, graphics;
    uint32_t n_starts, n_compute;
    uint32_t starts[SIM_MAX_STARTS]; /* in the order in which the driver tries them */
    uint32_t pad;
    uint64_t memory_mib;
    struct sim_compute_profile compute[SIM_MAX_COMPUTE_PROFILES];
};
struct sim_board {
    char name[64], product[96];
    uint64_t memory_mib;
    uint32_t compute_slices, memory_slices, pci_device_id, capability_major, capability_minor;
    uint32_t architecture, mode_change_resets, gpm, power_limit_mw, idle_power_mw;
    uint32_t multiprocessors, n_profiles;
    struct sim_profile profiles[SIM_MAX_PROFILES];
};

struct sim_ci {
    uint32_t used, id, profile /* index into profile.compute */, start, generation, device_index;
};
struct sim_gi {
    uint32_t used, id, profile /* index into board.profiles */, start, generation, pad;
    struct sim_ci ci[SIM_MAX_CI];
    double activity[SIM_ACTIVITIES]; /* ratios 0..1, see SIM_ACT_* */
    double integral[SIM_ACTIVITIES]; /* of activity over time, in seconds, up to `since` */
};
enum { SIM_ACT_GRAPHICS, SIM_ACT_SM, SIM_ACT_OCCUPANCY, SIM_ACT_TENSOR, SIM_ACT_DRAM,
       SIM_ACT_FP64, SIM_ACT_FP32, SIM_ACT_FP16 };
struct sim_process {
    uint32_t pid, gi, ci, watch; /* watch: the entry goes when the process does */
    uint64_t memory_bytes;
};
/* What one call may change. Two copies per GPU: a call edits the idle copy and then flips. */
struct sim_gpu_state {
    uint32_t mig_current, mig_pending, generation, pad;
    struct sim_gi gi[SIM_MAX_GI];
    double activity[SIM_ACTIVITIES], integral[SIM_ACTIVITIES]; /* whole GPU, when MIG is off */
    double energy_mj;     /* up to `since` */
    uint64_t since_ns;    /* of the integrals and the energy */
    struct sim_process processes[SIM_MAX_PROCESSES];
};
struct sim_gpu {
    uint32_t active, pad;
    struct sim_gpu_state copy[2];
};

enum sim_kind { SIM_READ, SIM_GI_CREATE, SIM_CI_CREATE, SIM_GI_DESTROY, SIM_CI_DESTROY,
                SIM_MODE_CHANGE, SIM_KINDS };
struct sim_fault {
    uint32_t used, action /* a return code, or SIM_KILL_* */, remaining, skip;
    uint32_t gpu, gi, sleep_ms, pad; /* SIM_NOT_MIG matches every GPU, every instance */
    char function[72];
};
enum { SIM_KILL_BEFORE = 1000, SIM_KILL_AFTER, SIM_SLEEP };

struct sim_file {
    char magic[8];
    uint32_t layout_bytes, n_gpus, require_reset, admin_uid;
    char boot_id[40];
    uint64_t seed;
    pthread_mutex_t mutex;
    struct sim_board board;
    uint64_t calls[SIM_KINDS];
    uint64_t latency_us[SIM_KINDS];
    uint64_t virtual_latency, virtual_us, recoveries;
    uint32_t n_faults, pad;
    struct sim_fault faults[SIM_MAX_FAULTS];
    struct sim_gpu gpu[SIM_MAX_GPUS];
};

extern struct sim_file *sim;

/* Attaching. Returns an NVML code; `sim` is set on success. */
nvmlReturn_t sim_attach(void);
void sim_detach(void);

/* Lock the machine and look at a GPU. `sim_begin` gives the committed copy, `sim_edit` a fresh
 * copy to change, `sim_commit` makes it the committed one in a single store, so that a process
 * killed at any point leaves the machine as it was before its call or as it is after it. */
nvmlReturn_t sim_lock(void);
void sim_unlock(void);
const struct sim_gpu_state *sim_view(uint32_t gpu);
struct sim_gpu_state *sim_edit(uint32_t gpu);
void sim_commit(uint32_t gpu);

/* Every exported call passes through these two: faults, counters, latency and trace. */
nvmlReturn_t sim_enter(const char *function, enum sim_kind kind, uint32_t gpu, uint32_t gi);
nvmlReturn_t sim_leave(const char *function, enum sim_kind kind, uint32_t gpu, uint32_t gi,
                       nvmlReturn_t result);
nvmlReturn_t sim_read_environment(void);
nvmlReturn_t sim_add_faults(const char *script);
nvmlReturn_t sim_parse_fault(const char *text, size_t length, struct sim_fault *fault);

bool sim_may_administer(void);
uint64_t sim_now_ns(void);
void sim_advance(struct sim_gpu_state *gpu); /* bring the integrals up to now */
double sim_power_mw(const struct sim_gpu_state *gpu);
bool sim_process_alive(const struct sim_process *process);

/* Handles are numbers dressed as pointers: tag, GPU, slots and the generation of the instance,
 * so that a handle kept after its instance was destroyed is recognised as stale. */
enum sim_tag { SIM_TAG_GPU = 0x51, SIM_TAG_MIG = 0x52, SIM_TAG_GI = 0x53, SIM_TAG_CI = 0x54 };
struct sim_handle { uint32_t tag, gpu, gi, ci, generation; };
void *sim_pack(struct sim_handle handle);
struct sim_handle sim_unpack(const void *pointer);

/* Resolve a handle under the lock; NULL and a code where it is stale or of another kind. */
const struct sim_gi *sim_find_gi(const struct sim_gpu_state *gpu, struct sim_handle handle);
const struct sim_ci *sim_find_ci(const struct sim_gpu_state *gpu, struct sim_handle handle);
void sim_gpu_uuid(uint32_t gpu, char out[96]);
void sim_mig_uuid(uint32_t gpu, const struct sim_gi *gi, const struct sim_ci *ci, char out[96]);

#endif
