// Work in pieces on several threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace noiser {

// Calls work(begin, end) for consecutive pieces of [first, last), each of `piece` or fewer rows.
// Threads live for one call: a call takes milliseconds, their start microseconds.
template <typename Work>
void in_pieces(std::int64_t first, std::int64_t last, std::int64_t piece, int threads, Work work) {
    std::atomic<std::int64_t> next{first};
    std::exception_ptr failure;
    std::mutex lock;
    auto run = [&] {
        try {
            for (;;) {
                const std::int64_t begin = next.fetch_add(piece);
                if (begin >= last) return;
                work(begin, std::min(begin + piece, last));
            }
        } catch (...) {
            const std::lock_guard<std::mutex> guard(lock);
            failure = std::current_exception();
            next = last;
        }
    };
    const std::int64_t pieces = (last - first + piece - 1) / piece;
    const int helpers = static_cast<int>(std::min<std::int64_t>(threads, pieces)) - 1;
    std::vector<std::thread> started;
    for (int i = 0; i < helpers; ++i) started.emplace_back(run);
    run();
    for (auto& thread : started) thread.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace noiser
