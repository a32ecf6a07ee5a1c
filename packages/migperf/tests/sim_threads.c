/* Random driver calls from several threads of several processes at once, some of which are killed;
 * linked with the simulator's own sources, so that sanitizers see every access. Run by
 * test_sanitizers.py, which makes the machine: sim_threads STATE-in-environment is all it needs. */
#define _GNU_SOURCE
#include "../csrc/sim_state.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 4, PROCESSES = 3, OPERATIONS = 4000, KILLS = 4 };

nvmlReturn_t nvmlInit_v2(void);
nvmlReturn_t nvmlShutdown(void);
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int, nvmlDevice_t *);
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t, char *, unsigned int);
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t, nvmlMemory_t *);
nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t, unsigned long long *);
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t, unsigned int *,
                                                     nvmlProcessInfo_t *);
nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t, unsigned int, nvmlDevice_t *);
nvmlReturn_t nvmlDeviceCreateGpuInstance(nvmlDevice_t, unsigned int, nvmlGpuInstance_t *);
nvmlReturn_t nvmlDeviceGetGpuInstanceById(nvmlDevice_t, unsigned int, nvmlGpuInstance_t *);
nvmlReturn_t nvmlDeviceGetGpuInstances(nvmlDevice_t, unsigned int, nvmlGpuInstance_t *,
                                       unsigned int *);
nvmlReturn_t nvmlGpuInstanceDestroy(nvmlGpuInstance_t);
nvmlReturn_t nvmlGpuInstanceGetInfo(nvmlGpuInstance_t, nvmlGpuInstanceInfo_t *);
nvmlReturn_t nvmlGpuInstanceCreateComputeInstance(nvmlGpuInstance_t, unsigned int,
                                                  nvmlComputeInstance_t *);
nvmlReturn_t nvmlGpuInstanceGetComputeInstanceById(nvmlGpuInstance_t, unsigned int,
                                                   nvmlComputeInstance_t *);
nvmlReturn_t nvmlComputeInstanceDestroy(nvmlComputeInstance_t);
nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *);
nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t, nvmlGpmSample_t);
nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t);
int migperfSimOccupy(unsigned, unsigned, unsigned, unsigned, unsigned long long, unsigned);
int migperfSimVacate(unsigned, unsigned);
int migperfSimSetActivity(unsigned, unsigned, const double *, unsigned);
int migperfSimSetLatency(unsigned, unsigned long long);
int migperfSimVirtualClock(unsigned);
int migperfSimCounters(unsigned long long *, unsigned long long *, unsigned long long *, unsigned);

static const unsigned PROFILES[] = {19, 14, 9, 5, 0, 15, 20};

static void check(int condition, const char *what)
{
    if (!condition) {
        fprintf(stderr, "sim_threads: %s\n", what);
        abort();
    }
}

/* What refusals are in order; anything else is a fault of the simulator. */
static void allow(nvmlReturn_t result)
{
    int code = (int)result;
    check(code == 0 || code == 2 || code == 3 || code == 6 || code == 7 || code == 19 ||
              code == 20 || code == 23,
          "a return code that no header allows");
}

static void *operate(void *argument)
{
    unsigned seed = (unsigned)(uintptr_t)argument;
    nvmlDevice_t gpu[2], mig;
    nvmlGpuInstance_t gi = NULL, list[8];
    nvmlComputeInstance_t ci = NULL;
    nvmlGpuInstanceInfo_t info;
    nvmlProcessInfo_t running[64];
    nvmlMemory_t memory;
    nvmlGpmSample_t sample;
    unsigned long long value, calls[SIM_KINDS];
    char text[96];
    check(nvmlInit_v2() == NVML_SUCCESS, "no driver");
    for (unsigned i = 0; i < 2; i++)
        check(nvmlDeviceGetHandleByIndex_v2(i, &gpu[i]) == NVML_SUCCESS, "no GPU");
    check(nvmlGpmSampleAlloc(&sample) == NVML_SUCCESS, "no sample");
    for (int n = 0; n < OPERATIONS; n++) {
        unsigned which = (unsigned)rand_r(&seed) % 2, count = 8;
        nvmlDevice_t device = gpu[which];
        double ratio = (rand_r(&seed) % 100) / 100.0;
        switch (rand_r(&seed) % 16) {
        case 0: case 1:
            allow(nvmlDeviceCreateGpuInstance(device, PROFILES[rand_r(&seed) % 7], &gi));
            break;
        case 2: case 3:
            allow(nvmlDeviceGetGpuInstanceById(device, (unsigned)rand_r(&seed) % 14, &gi));
            break;
        case 4: case 5:
            if (gi)
                allow(nvmlGpuInstanceCreateComputeInstance(gi, (unsigned)rand_r(&seed) % 5, &ci));
            break;
        case 6:
            if (gi)
                allow(nvmlGpuInstanceGetComputeInstanceById(gi, (unsigned)rand_r(&seed) % 4, &ci));
            break;
        case 7:
            if (ci)
                allow(nvmlComputeInstanceDestroy(ci));
            break;
        case 8: case 9:
            if (gi)
                allow(nvmlGpuInstanceDestroy(gi));
            break;
        case 10:
            allow(nvmlDeviceGetGpuInstances(device, 19, list, &count));
            if (gi)
                allow(nvmlGpuInstanceGetInfo(gi, &info));
            break;
        case 11:
            if (nvmlDeviceGetMigDeviceHandleByIndex(device, (unsigned)rand_r(&seed) % 7, &mig) ==
                NVML_SUCCESS) {
                allow(nvmlDeviceGetUUID(mig, text, sizeof text));
                allow(nvmlDeviceGetMemoryInfo(mig, &memory));
                allow(nvmlGpmSampleGet(mig, sample));
            }
            break;
        case 12:
            count = 64;
            allow(nvmlDeviceGetComputeRunningProcesses_v3(device, &count, running));
            allow(nvmlDeviceGetTotalEnergyConsumption(device, &value));
            break;
        case 13:
            allow((nvmlReturn_t)migperfSimOccupy(which, (unsigned)rand_r(&seed) % 14, 0,
                                                 (unsigned)getpid(), 1 << 20, 1));
            allow((nvmlReturn_t)migperfSimVacate(which, (unsigned)getpid()));
            break;
        case 14:
            allow((nvmlReturn_t)migperfSimSetActivity(which, (unsigned)rand_r(&seed) % 14, &ratio,
                                                      1));
            allow((nvmlReturn_t)migperfSimSetLatency(SIM_GI_CREATE, (unsigned)n % 3));
            allow((nvmlReturn_t)migperfSimVirtualClock(n % 2));
            allow((nvmlReturn_t)migperfSimCounters(calls, &value, NULL, 0));
            break;
        case 15: /* a library inside the same process opens and closes the driver as well */
            check(nvmlInit_v2() == NVML_SUCCESS, "no second opening");
            check(nvmlShutdown() == NVML_SUCCESS, "no second closing");
            break;
        }
    }
    allow(nvmlGpmSampleFree(sample));
    check(nvmlShutdown() == NVML_SUCCESS, "no closing");
    return NULL;
}

static pid_t start(unsigned number)
{
    pid_t pid = fork();
    if (pid)
        return pid;
    pthread_t threads[THREADS];
    for (unsigned t = 0; t < THREADS; t++)
        check(!pthread_create(&threads[t], NULL, operate, (void *)(uintptr_t)(number * 64 + t + 1)),
              "no thread");
    for (unsigned t = 0; t < THREADS; t++)
        pthread_join(threads[t], NULL);
    exit(0);
}

int main(void)
{
    pid_t workers[PROCESSES];
    unsigned kills = 0, failures = 0;
    for (unsigned p = 0; p < PROCESSES; p++)
        workers[p] = start(p);
    for (; kills < KILLS; kills++) {
        unsigned p = kills % PROCESSES;
        int status;
        usleep(60000);
        kill(workers[p], SIGKILL);
        waitpid(workers[p], &status, 0);
        failures += WIFEXITED(status) && WEXITSTATUS(status);
        workers[p] = start(PROCESSES + kills);
    }
    for (unsigned p = 0; p < PROCESSES; p++) {
        int status;
        waitpid(workers[p], &status, 0);
        failures += !WIFEXITED(status) || WEXITSTATUS(status);
    }
    printf("%u processes failed, %u killed\n", failures, kills);
    return failures != 0;
}
