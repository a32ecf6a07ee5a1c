/* The state file: creation, mapping, lock, commit, handles. */
#define _GNU_SOURCE
#include "sim_state.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char MAGIC[8] = "MIGSIM2";

struct sim_file *sim;
static char attached_path[4096];
static pthread_mutex_t attach_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned attach_count;

static int init_mutex(pthread_mutex_t *mutex)
{
    pthread_mutexattr_t attributes;
    int rc = pthread_mutexattr_init(&attributes);
    if (rc)
        return rc;
    rc = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    if (!rc)
        rc = pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    if (!rc)
        rc = pthread_mutex_init(mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
    return rc;
}

static void read_boot_id(char out[40])
{
    memset(out, 0, 40);
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (file) {
        if (!fgets(out, 40, file))
            out[0] = 0;
        fclose(file);
    }
}

/* Write a new machine to `path` under a temporary name, then rename. */
SIM_EXPORT int migperfSimCreate(const char *path, const struct sim_board *board,
                                unsigned int n_gpus, unsigned int require_reset,
                                unsigned long long seed)
{
    char temporary[4200];
    if (!path || !board || !n_gpus || n_gpus > SIM_MAX_GPUS)
        return EINVAL;
    snprintf(temporary, sizeof temporary, "%s.%ld.tmp", path, (long)getpid());
    struct sim_file *file = calloc(1, sizeof *file);
    if (!file)
        return ENOMEM;
    memcpy(file->magic, MAGIC, sizeof MAGIC);
    file->layout_bytes = (uint32_t)sizeof *file;
    file->n_gpus = n_gpus;
    file->require_reset = require_reset;
    file->admin_uid = (uint32_t)geteuid();
    file->seed = seed;
    file->board = *board;
    read_boot_id(file->boot_id);
    int rc = init_mutex(&file->mutex);
    uint64_t now = sim_now_ns();
    for (unsigned g = 0; g < n_gpus; g++)
        for (int c = 0; c < 2; c++)
            file->gpu[g].copy[c].since_ns = now;
    if (!rc) {
        int fd = open(temporary, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0666);
        if (fd < 0) {
            rc = errno;
        } else {
            const char *bytes = (const char *)file;
            size_t left = sizeof *file;
            while (left && !rc) {
                ssize_t n = write(fd, bytes, left);
                if (n < 0)
                    rc = errno == EINTR ? 0 : errno;
                else
                    bytes += n, left -= (size_t)n;
            }
            close(fd);
            if (!rc && rename(temporary, path))
                rc = errno;
            if (rc)
                unlink(temporary);
        }
    }
    free(file);
    return rc;
}

/* Choose the state file for this process; the environment variable stands where none was given. */
SIM_EXPORT int migperfSimAttach(const char *path)
{
    if (!path || strlen(path) >= sizeof attached_path)
        return EINVAL;
    pthread_mutex_lock(&attach_lock);
    int rc = attach_count ? EBUSY : 0;
    if (!rc)
        snprintf(attached_path, sizeof attached_path, "%s", path);
    pthread_mutex_unlock(&attach_lock);
    return rc;
}

/* A reboot ends every layout and every lock owner: start the machine afresh. */
static void after_reboot(struct sim_file *file, const char *boot_id)
{
    uint64_t now = sim_now_ns();
    init_mutex(&file->mutex);
    for (uint32_t g = 0; g < file->n_gpus; g++) {
        struct sim_gpu *gpu = &file->gpu[g];
        uint32_t mode = gpu->copy[gpu->active & 1].mig_pending;
        if (!file->board.mode_change_resets)
            mode = 0; /* the mode survives a reboot on Ampere only */
        memset(gpu, 0, sizeof *gpu);
        for (int c = 0; c < 2; c++) {
            gpu->copy[c].mig_current = gpu->copy[c].mig_pending = mode;
            gpu->copy[c].since_ns = now;
        }
    }
    memcpy(file->boot_id, boot_id, sizeof file->boot_id);
}

static nvmlReturn_t map_file(const char *path)
{
    char boot_id[40];
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno == EACCES || errno == EPERM ? NVML_ERROR_NO_PERMISSION
                                                 : NVML_ERROR_DRIVER_NOT_LOADED;
    struct stat info;
    if (fstat(fd, &info) || (size_t)info.st_size != sizeof(struct sim_file)) {
        close(fd);
        return NVML_ERROR_DRIVER_NOT_LOADED;
    }
    struct sim_file *file =
        mmap(NULL, sizeof *file, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (file == MAP_FAILED) {
        close(fd);
        return NVML_ERROR_OPERATING_SYSTEM;
    }
    nvmlReturn_t result = NVML_SUCCESS;
    if (memcmp(file->magic, MAGIC, sizeof MAGIC) || file->layout_bytes != sizeof *file ||
        !file->n_gpus || file->n_gpus > SIM_MAX_GPUS ||
        file->board.n_profiles > SIM_MAX_PROFILES) {
        result = NVML_ERROR_DRIVER_NOT_LOADED;
    } else {
        read_boot_id(boot_id);
        if (memcmp(boot_id, file->boot_id, sizeof boot_id)) {
            flock(fd, LOCK_EX);
            if (memcmp(boot_id, file->boot_id, sizeof boot_id))
                after_reboot(file, boot_id);
            flock(fd, LOCK_UN);
        }
    }
    close(fd);
    if (result == NVML_SUCCESS)
        sim = file;
    else
        munmap(file, sizeof *file);
    return result;
}

nvmlReturn_t sim_attach(void)
{
    pthread_mutex_lock(&attach_lock);
    nvmlReturn_t result = NVML_SUCCESS;
    if (!sim) {
        const char *path = attached_path[0] ? attached_path : getenv("MIGPERF_SIM_STATE");
        result = path && path[0] ? map_file(path) : NVML_ERROR_DRIVER_NOT_LOADED;
    }
    if (result == NVML_SUCCESS)
        attach_count++;
    pthread_mutex_unlock(&attach_lock);
    return result;
}

void sim_detach(void)
{
    pthread_mutex_lock(&attach_lock);
    if (attach_count && --attach_count == 0) {
        munmap(sim, sizeof *sim);
        sim = NULL;
    }
    pthread_mutex_unlock(&attach_lock);
}

nvmlReturn_t sim_lock(void)
{
    if (!sim)
        return NVML_ERROR_UNINITIALIZED;
    int rc = pthread_mutex_lock(&sim->mutex);
    if (rc == EOWNERDEAD) {
        /* The owner died inside a call. Its edits live in a copy that was never committed. */
        sim->recoveries++;
        rc = pthread_mutex_consistent(&sim->mutex);
    }
    return rc ? NVML_ERROR_UNKNOWN : NVML_SUCCESS;
}

void sim_unlock(void)
{
    pthread_mutex_unlock(&sim->mutex);
}

const struct sim_gpu_state *sim_view(uint32_t gpu)
{
    const struct sim_gpu *g = &sim->gpu[gpu];
    return &g->copy[g->active & 1];
}

struct sim_gpu_state *sim_edit(uint32_t gpu)
{
    struct sim_gpu *g = &sim->gpu[gpu];
    struct sim_gpu_state *idle = &g->copy[(g->active & 1) ^ 1];
    *idle = g->copy[g->active & 1];
    return idle;
}

void sim_commit(uint32_t gpu)
{
    struct sim_gpu *g = &sim->gpu[gpu];
    atomic_thread_fence(memory_order_release);
    __atomic_store_n(&g->active, (g->active & 1) ^ 1, __ATOMIC_RELEASE);
}

bool sim_may_administer(void)
{
    const char *fake = getenv("MIGPERF_SIM_UID");
    unsigned long uid = fake && fake[0] ? strtoul(fake, NULL, 10) : (unsigned long)geteuid();
    return uid == 0 || uid == sim->admin_uid;
}

uint64_t sim_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

double sim_power_mw(const struct sim_gpu_state *gpu)
{
    const struct sim_board *board = &sim->board;
    double share = gpu->activity[SIM_ACT_GRAPHICS];
    if (gpu->mig_current) {
        share = 0;
        for (int i = 0; i < SIM_MAX_GI; i++)
            if (gpu->gi[i].used)
                share += gpu->gi[i].activity[SIM_ACT_GRAPHICS] *
                         board->profiles[gpu->gi[i].profile].multiprocessors /
                         (double)board->multiprocessors;
    }
    if (share > 1)
        share = 1;
    return board->idle_power_mw + share * ((double)board->power_limit_mw - board->idle_power_mw);
}

void sim_advance(struct sim_gpu_state *gpu)
{
    uint64_t now = sim_now_ns();
    double seconds = (double)(now - gpu->since_ns) * 1e-9;
    gpu->energy_mj += sim_power_mw(gpu) * seconds;
    for (int a = 0; a < SIM_ACTIVITIES; a++) {
        gpu->integral[a] += gpu->activity[a] * seconds;
        for (int i = 0; i < SIM_MAX_GI; i++)
            if (gpu->gi[i].used)
                gpu->gi[i].integral[a] += gpu->gi[i].activity[a] * seconds;
    }
    gpu->since_ns = now;
}

bool sim_process_alive(const struct sim_process *process)
{
    if (!process->pid)
        return false;
    return !process->watch || kill((pid_t)process->pid, 0) == 0 || errno != ESRCH;
}

void *sim_pack(struct sim_handle h)
{
    return (void *)(((uintptr_t)h.tag << 56) | ((uintptr_t)h.gpu << 48) |
                    ((uintptr_t)h.gi << 40) | ((uintptr_t)h.ci << 32) | h.generation);
}

struct sim_handle sim_unpack(const void *pointer)
{
    uintptr_t p = (uintptr_t)pointer;
    struct sim_handle h = {(uint32_t)(p >> 56), (uint32_t)(p >> 48) & 0xFF,
                           (uint32_t)(p >> 40) & 0xFF, (uint32_t)(p >> 32) & 0xFF, (uint32_t)p};
    if (!sim || h.gpu >= sim->n_gpus || h.gi >= SIM_MAX_GI || h.ci >= SIM_MAX_CI)
        h.tag = 0;
    return h;
}

const struct sim_gi *sim_find_gi(const struct sim_gpu_state *gpu, struct sim_handle handle)
{
    const struct sim_gi *gi = &gpu->gi[handle.gi];
    return gi->used && gi->generation == handle.generation ? gi : NULL;
}

const struct sim_ci *sim_find_ci(const struct sim_gpu_state *gpu, struct sim_handle handle)
{
    const struct sim_gi *gi = &gpu->gi[handle.gi];
    const struct sim_ci *ci = &gi->ci[handle.ci];
    return gi->used && ci->used && ci->generation == handle.generation ? ci : NULL;
}

static uint64_t mix(uint64_t x)
{
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static void format_uuid(const char *prefix, uint64_t a, uint64_t b, char out[96])
{
    snprintf(out, 96, "%s-%08x-%04x-%04x-%04x-%012llx", prefix, (unsigned)(a >> 32),
             (unsigned)(a >> 16) & 0xFFFF, ((unsigned)a & 0x0FFF) | 0x5000,
             ((unsigned)(b >> 48) & 0x3FFF) | 0x8000, (unsigned long long)(b & 0xFFFFFFFFFFFFu));
}

void sim_gpu_uuid(uint32_t gpu, char out[96])
{
    uint64_t a = mix(sim->seed ^ mix(gpu + 1));
    format_uuid("GPU", a, mix(a), out);
}

void sim_mig_uuid(uint32_t gpu, const struct sim_gi *gi, const struct sim_ci *ci, char out[96])
{
    uint64_t a = mix(sim->seed ^ mix(gpu + 1));
    a = mix(a ^ ((uint64_t)gi->generation << 32 | ci->generation));
    format_uuid("MIG", a, mix(a), out);
}
