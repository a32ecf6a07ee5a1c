#include "parallel.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace vitcod {
namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
std::atomic<GompParallel> gomp{nullptr};

struct Queue {
    std::atomic<std::int64_t> next{0};
    std::int64_t items;
    const std::function<void(std::int64_t)>* work;
};

void drain(void* data) {
    auto* queue = static_cast<Queue*>(data);
    for (std::int64_t i; (i = queue->next.fetch_add(1, std::memory_order_relaxed)) < queue->items;)
        (*queue->work)(i);
}

}  // namespace

bool use_openmp(const std::string& path) {
    // Two OpenMP runtimes in one process would fight for the cores with spinning threads.
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
    if (!library) return false;
    gomp = reinterpret_cast<GompParallel>(dlsym(library, "GOMP_parallel"));
    return gomp.load() != nullptr;
}

void in_parallel(std::int64_t items, int threads, const std::function<void(std::int64_t)>& work) {
    Queue queue;
    queue.items = items;
    queue.work = &work;
    threads = static_cast<int>(std::min<std::int64_t>(threads, items));
    if (threads <= 1) return drain(&queue);
    if (const GompParallel parallel = gomp.load())
        return parallel(drain, &queue, static_cast<unsigned>(threads), 0);
    std::vector<std::thread> team;
    for (int t = 1; t < threads; ++t) team.emplace_back(drain, &queue);
    drain(&queue);
    for (auto& thread : team) thread.join();
}

}  // namespace vitcod
