#include "kernels.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__unix__)
#include <pthread.h>
#endif

namespace elixir {
namespace {

struct Job {
    void (*body)(void*, int64_t);
    void* context;
    int64_t count;
    std::atomic<int64_t> next{0};
    std::atomic<int> inside{0};
    void work() {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(context, i);
    }
};

class Pool {
  public:
    void run(int64_t count, int threads, void (*body)(void*, int64_t), void* context) {
        // One job at a time: a second caller (another Python thread) works alone.
        std::unique_lock<std::mutex> only(caller_, std::try_to_lock);
        if (!only.owns_lock()) {
            for (int64_t i = 0; i < count; ++i) body(context, i);
            return;
        }
        Job job;
        job.body = body;
        job.context = context;
        job.count = count;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (static_cast<int>(workers_.size()) < threads - 1)
                workers_.emplace_back([this, id = static_cast<int>(workers_.size())] { loop(id); });
            job_ = &job;
            wanted_ = threads - 1;
            ++generation_;
        }
        wake_.notify_all();
        job.work();
        std::unique_lock<std::mutex> lock(mutex_);
        job_ = nullptr;
        done_.wait(lock, [&] { return job.inside.load() == 0; });
    }

    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (auto& worker : workers_) worker.join();
    }

  private:
    void loop(int id) {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        while (true) {
            wake_.wait(lock, [&] { return stop_ || (generation_ != seen && job_ && id < wanted_); });
            if (stop_) return;
            seen = generation_;
            Job* job = job_;
            job->inside.fetch_add(1);
            lock.unlock();
            job->work();
            lock.lock();
            job->inside.fetch_sub(1);
            done_.notify_all();
        }
    }

    std::mutex caller_, mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> workers_;
    Job* job_ = nullptr;
    int wanted_ = 0;
    uint64_t generation_ = 0;
    bool stop_ = false;
};

Pool* pool = nullptr;
std::mutex making;

Pool& the_pool() {
    std::lock_guard<std::mutex> lock(making);
    if (!pool) {
        pool = new Pool;  // never destroyed: its threads may outlive static destructors
#if defined(__unix__)
        // A forked child has none of the threads: it makes a pool of its own.
        static bool registered = false;
        if (!registered) {
            registered = true;
            pthread_atfork(nullptr, nullptr, [] { pool = nullptr; });
        }
#endif
    }
    return *pool;
}

}  // namespace

void parallel_for(int64_t count, int threads, void (*body)(void*, int64_t), void* context) {
    if (threads > count) threads = static_cast<int>(count);
    if (threads <= 1) {
        for (int64_t i = 0; i < count; ++i) body(context, i);
        return;
    }
    the_pool().run(count, threads, body, context);
}

}  // namespace elixir
