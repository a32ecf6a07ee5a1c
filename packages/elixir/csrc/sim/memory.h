// The memory of the simulated device: blocks under a hard budget, at two addresses.

#pragma once

#include <c10/util/Exception.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <map>
#include <mutex>
#include <unordered_map>

namespace sim {

constexpr size_t kLine = 64;    // alignment of blocks; PyTorch's CPU kernels expect no more
constexpr int kPoison = 0xFF;   // NaN in every floating type, -1 in every integer type
constexpr size_t kReach = size_t{1} << 36;  // bytes of address space, not of memory

// Addresses given and taken are the tensors', which nothing may touch; see kernel().
class Memory {
 public:
  Memory() {
    device_ = reserve(PROT_NONE);
    kernel_ = reserve(PROT_READ | PROT_WRITE);
    free_[0] = kReach;
  }

  // Take a block; charge it to the budget, or count it as workspace of an operator.
  void* take(size_t bytes, bool charge) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (charge) admit(bytes);
    const size_t span = (bytes + kLine - 1) / kLine * kLine;
    auto place = free_.begin();
    while (place != free_.end() && place->second < span) ++place;
    TORCH_CHECK(place != free_.end(), "sim: the simulated device's address space is used up");
    const size_t offset = place->first, left = place->second - span;
    free_.erase(place);
    if (left > 0) free_[offset + span] = left;
    blocks_[offset] = {bytes, span, charge};
    if (!charge) workspace_ += bytes;
    note();
    std::memset(kernel_ + offset, kPoison, span);
    return device_ + offset;
  }

  // Charge a block that was workspace: it is a result.
  void charge(void* address) {
    std::lock_guard<std::mutex> lock(mutex_);
    Block& block = blocks_.at(offset_of(address));
    if (block.charged) return;
    admit(block.bytes);
    block.charged = true;
    workspace_ -= block.bytes;
    note();
  }

  void give(void* address) {
    std::lock_guard<std::mutex> lock(mutex_);
    const size_t offset = offset_of(address);
    const auto found = blocks_.find(offset);
    if (found == blocks_.end()) {
      std::fprintf(stderr, "sim: a block is freed that is not allocated\n");
      std::abort();
    }
    const Block block = found->second;
    blocks_.erase(found);
    (block.charged ? live_ : workspace_) -= block.bytes;
    std::memset(kernel_ + offset, kPoison, block.span);
    size_t begin = offset, size = block.span;
    auto after = free_.lower_bound(offset);
    if (after != free_.end() && after->first == begin + size) {
      size += after->second;
      after = free_.erase(after);
    }
    if (after != free_.begin()) {
      const auto before = std::prev(after);
      if (before->first + before->second == begin) {
        begin = before->first;
        size += before->second;
        free_.erase(before);
      }
    }
    free_[begin] = size;
  }

  // The operators' address of a tensor's, and back.
  char* kernel(const void* address) const {
    return address == nullptr ? nullptr : kernel_ + offset_of(address);
  }
  char* device(const void* address) const {
    return device_ + (static_cast<const char*>(address) - kernel_);
  }
  bool in_kernel(const void* address) const { return within(address, kernel_); }
  bool in_device(const void* address) const { return within(address, device_); }

  size_t budget() {
    std::lock_guard<std::mutex> lock(mutex_);
    return budget_;
  }
  void budget(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    budget_ = bytes;
  }
  void reset_peaks() {
    std::lock_guard<std::mutex> lock(mutex_);
    peak_ = live_;
    workspace_peak_ = workspace_;
    peak_with_workspace_ = live_ + workspace_;
    refused_ = 0;
  }
  size_t read(int which) {
    std::lock_guard<std::mutex> lock(mutex_);
    const size_t values[] = {live_,   peak_,   workspace_peak_, peak_with_workspace_,
                             refused_, blocks_.size(), workspace_};
    return values[which];
  }

 private:
  struct Block {
    size_t bytes, span;
    bool charged;
  };

  static char* reserve(int access) {
    void* address =
        mmap(nullptr, kReach, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TORCH_CHECK(address != MAP_FAILED, "sim: cannot reserve ", kReach, " bytes of address space");
    return static_cast<char*>(address);
  }
  static bool within(const void* address, const char* begin) {
    const char* p = static_cast<const char*>(address);
    return p >= begin && p < begin + kReach;
  }
  size_t offset_of(const void* address) const {
    return static_cast<size_t>(static_cast<const char*>(address) - device_);
  }
  void admit(size_t bytes) {
    if (bytes > budget_ || live_ > budget_ - bytes) {
      ++refused_;
      TORCH_CHECK_WITH(
          OutOfMemoryError, false, "sim out of memory: tried to allocate ", bytes, " bytes; ",
          live_, " of the budget of ", budget_, " bytes are allocated");
    }
    live_ += bytes;
  }
  void note() {
    peak_ = std::max(peak_, live_);
    workspace_peak_ = std::max(workspace_peak_, workspace_);
    peak_with_workspace_ = std::max(peak_with_workspace_, live_ + workspace_);
  }

  std::mutex mutex_;
  char* device_;
  char* kernel_;
  std::map<size_t, size_t> free_;  // offset -> size, neighbours merged, lowest first
  std::unordered_map<size_t, Block> blocks_;
  size_t budget_ = std::numeric_limits<size_t>::max();
  size_t live_ = 0, peak_ = 0, workspace_ = 0, workspace_peak_ = 0, peak_with_workspace_ = 0;
  size_t refused_ = 0;
};

}  // namespace sim
