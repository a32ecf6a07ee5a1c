// Threads: torch's own OpenMP team where its library was named, std::thread otherwise.
#pragma once
#include <cstdint>
#include <functional>
#include <string>

namespace vitcod {

// Use GOMP_parallel of this library, already loaded by torch; false if it has none.
bool use_openmp(const std::string& path);

// Run work(i) for i in [0, items) on up to `threads` threads, in no order.
void in_parallel(std::int64_t items, int threads, const std::function<void(std::int64_t)>& work);

}  // namespace vitcod
