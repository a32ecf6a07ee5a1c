/* Faults, counters, latencies and the trace that every call passes through. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "sim_state.h"

static const struct { const char *name; uint32_t code; } ACTIONS[] = {
    {"UNINITIALIZED", 1}, {"INVALID_ARGUMENT", 2}, {"NOT_SUPPORTED", 3}, {"NO_PERMISSION", 4},
    {"NOT_FOUND", 6}, {"INSUFFICIENT_SIZE", 7}, {"DRIVER_NOT_LOADED", 9}, {"TIMEOUT", 10},
    {"GPU_IS_LOST", 15}, {"RESET_REQUIRED", 16}, {"OPERATING_SYSTEM", 17}, {"IN_USE", 19},
    {"MEMORY", 20}, {"INSUFFICIENT_RESOURCES", 23}, {"UNKNOWN", 999},
    {"KILL", SIM_KILL_BEFORE}, {"KILL_AFTER", SIM_KILL_AFTER}, {"SLEEP", SIM_SLEEP}};

static bool starts_with(const char *text, size_t length, const char *prefix, const char **rest)
{
    size_t n = strlen(prefix);
    if (length <= n || strncmp(text, prefix, n))
        return false;
    *rest = text + n;
    return true;
}

static bool number(const char *text, const char *end, uint32_t *out)
{
    uint64_t value = 0;
    if (text >= end)
        return false;
    for (; text < end; text++) {
        if (*text < '0' || *text > '9')
            return false;
        value = value * 10 + (uint64_t)(*text - '0');
        if (value > 0xFFFFFFFEu)
            return false;
    }
    *out = (uint32_t)value;
    return true;
}

/* FUNCTION[:GPU=n][:GI=n][:after=n]:ACTION[=ms][:xN]; ACTION is an NVML code without the
 * NVML_ERROR_ prefix, KILL, KILL_AFTER or SLEEP=ms. FUNCTION may end in '*'. */
nvmlReturn_t sim_parse_fault(const char *text, size_t length, struct sim_fault *fault)
{
    const char *end = text + length;
    *fault = (struct sim_fault){.used = 1, .remaining = 1, .gpu = SIM_NOT_MIG, .gi = SIM_NOT_MIG};
    bool have_action = false;
    for (int field = 0; text < end; field++) {
        const char *stop = memchr(text, ':', (size_t)(end - text));
        if (!stop)
            stop = end;
        size_t n = (size_t)(stop - text);
        const char *rest;
        if (field == 0) {
            if (!n || n >= sizeof fault->function)
                return NVML_ERROR_INVALID_ARGUMENT;
            memcpy(fault->function, text, n);
        } else if (starts_with(text, n, "GPU=", &rest)) {
            if (!number(rest, stop, &fault->gpu))
                return NVML_ERROR_INVALID_ARGUMENT;
        } else if (starts_with(text, n, "GI=", &rest)) {
            if (!number(rest, stop, &fault->gi))
                return NVML_ERROR_INVALID_ARGUMENT;
        } else if (starts_with(text, n, "after=", &rest)) {
            if (!number(rest, stop, &fault->skip))
                return NVML_ERROR_INVALID_ARGUMENT;
        } else if (starts_with(text, n, "SLEEP=", &rest)) {
            fault->action = SIM_SLEEP;
            have_action = number(rest, stop, &fault->sleep_ms);
        } else if (n > 1 && text[0] == 'x' && have_action) {
            if (!number(text + 1, stop, &fault->remaining) || !fault->remaining)
                return NVML_ERROR_INVALID_ARGUMENT;
        } else {
            bool found = false;
            for (size_t a = 0; a < sizeof ACTIONS / sizeof *ACTIONS; a++)
                if (strlen(ACTIONS[a].name) == n && !strncmp(ACTIONS[a].name, text, n) &&
                    ACTIONS[a].code != SIM_SLEEP) {
                    fault->action = ACTIONS[a].code;
                    found = have_action = true;
                }
            if (!found)
                return NVML_ERROR_INVALID_ARGUMENT;
        }
        text = stop + 1;
    }
    return have_action ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

static bool matches(const struct sim_fault *fault, const char *function, uint32_t gpu, uint32_t gi)
{
    if (!fault->used || !fault->remaining)
        return false;
    if ((fault->gpu != SIM_NOT_MIG && fault->gpu != gpu) ||
        (fault->gi != SIM_NOT_MIG && fault->gi != gi))
        return false;
    size_t n = strlen(fault->function);
    if (n && fault->function[n - 1] == '*')
        return !strncmp(fault->function, function, n - 1);
    return !strcmp(fault->function, function);
}

static void sleep_us(uint64_t us)
{
    struct timespec wait = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};
    while (nanosleep(&wait, &wait))
        ;
}

/* Returns the action of the first fault that fires, 0 where none does. */
static uint32_t fire(const char *function, uint32_t gpu, uint32_t gi, bool after)
{
    uint32_t action = 0, wait = 0;
    for (uint32_t f = 0; f < SIM_MAX_FAULTS && !action; f++) {
        struct sim_fault *fault = &sim->faults[f];
        if (!matches(fault, function, gpu, gi) || (fault->action == SIM_KILL_AFTER) != after)
            continue;
        if (fault->skip) {
            fault->skip--;
            continue;
        }
        if (--fault->remaining == 0) {
            fault->used = 0;
            sim->n_faults--;
        }
        action = fault->action;
        wait = fault->sleep_ms;
    }
    if (action == SIM_SLEEP) {
        sim_unlock();
        sleep_us((uint64_t)wait * 1000);
        if (sim_lock() != NVML_SUCCESS)
            return NVML_ERROR_UNKNOWN;
        return 0;
    }
    if (action == SIM_KILL_BEFORE || action == SIM_KILL_AFTER)
        raise(SIGKILL);
    return action;
}

nvmlReturn_t sim_enter(const char *function, enum sim_kind kind, uint32_t gpu, uint32_t gi)
{
    nvmlReturn_t result = sim_lock();
    if (result != NVML_SUCCESS)
        return result;
    sim->calls[kind]++;
    if (sim->n_faults) {
        uint32_t action = fire(function, gpu, gi, false);
        if (action)
            result = sim_leave(function, SIM_READ, gpu, gi, (nvmlReturn_t)action);
    }
    return result;
}

/* Another thread may open the driver, and with it read the environment, at any time. */
static pthread_mutex_t trace_lock = PTHREAD_MUTEX_INITIALIZER;
static char trace_path[4096];

/* Once per process and attachment: where to trace to, and the fault script of the environment,
 * which joins the fault table of the machine. */
nvmlReturn_t sim_read_environment(void)
{
    const char *path = getenv("MIGPERF_SIM_TRACE");
    pthread_mutex_lock(&trace_lock);
    snprintf(trace_path, sizeof trace_path, "%s", path ? path : "");
    pthread_mutex_unlock(&trace_lock);
    const char *script = getenv("MIGPERF_SIM_FAULTS");
    return script && script[0] ? sim_add_faults(script) : NVML_SUCCESS;
}

/* Add the faults of a script, separated by ';', to the machine: all of them or none. */
nvmlReturn_t sim_add_faults(const char *script)
{
    struct sim_fault parsed[SIM_MAX_FAULTS];
    uint32_t n = 0;
    while (*script) {
        size_t length = strcspn(script, ";");
        if (length) {
            if (n == SIM_MAX_FAULTS)
                return NVML_ERROR_INSUFFICIENT_SIZE;
            nvmlReturn_t result = sim_parse_fault(script, length, &parsed[n]);
            if (result != NVML_SUCCESS)
                return result;
            n++;
        }
        script += length + (script[length] == ';');
    }
    nvmlReturn_t result = sim_lock();
    if (result != NVML_SUCCESS)
        return result;
    if (sim->n_faults + n > SIM_MAX_FAULTS)
        result = NVML_ERROR_INSUFFICIENT_SIZE;
    for (uint32_t f = 0, i = 0; f < SIM_MAX_FAULTS && i < n && result == NVML_SUCCESS; f++)
        if (!sim->faults[f].used) {
            sim->faults[f] = parsed[i++];
            sim->n_faults++;
        }
    sim_unlock();
    return result;
}

static void trace(const char *function, uint32_t gpu, uint32_t gi, nvmlReturn_t result)
{
    pthread_mutex_lock(&trace_lock);
    int fd = -1;
    if (trace_path[0])
        fd = open(trace_path, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0666);
    pthread_mutex_unlock(&trace_lock);
    if (fd < 0)
        return;
    char line[256];
    int n = snprintf(line, sizeof line, "%llu %ld %s gpu=%d gi=%d -> %d\n",
                     (unsigned long long)sim_now_ns(), (long)getpid(), function, (int)gpu, (int)gi,
                     (int)result);
    if (n > 0 && write(fd, line, (size_t)n) != n)
        fprintf(stderr, "migperf simulator: the trace could not be written\n");
    close(fd);
}

nvmlReturn_t sim_leave(const char *function, enum sim_kind kind, uint32_t gpu, uint32_t gi,
                       nvmlReturn_t result)
{
    uint64_t wait = 0;
    if (kind != SIM_READ && result == NVML_SUCCESS) {
        if (sim->virtual_latency)
            sim->virtual_us += sim->latency_us[kind];
        else
            wait = sim->latency_us[kind];
        if (sim->n_faults)
            fire(function, gpu, gi, true);
    }
    sim_unlock();
    if (wait)
        sleep_us(wait);
    trace(function, gpu, gi, result);
    return result;
}
