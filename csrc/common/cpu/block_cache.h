// Large blocks of memory that wait to be used again. Knows no torch.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <unordered_map>

namespace effnet_kernels::cpu {

class BlockCache {
 public:
  static constexpr int64_t kSmallestBlock = int64_t(1) << 18;  // below it the allocator keeps memory by itself

  // The library's own.
  static BlockCache& instance() {
    static BlockCache* const blocks = new BlockCache;  // never destroyed: tensors may outlive every static object
    return *blocks;
  }

  // A block of at least `bytes`, from those that wait if one fits without waste.
  void* take(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    const int64_t size = (bytes + kGranularity - 1) / kGranularity * kGranularity;
    const auto found = waiting_.lower_bound(size);
    if (found != waiting_.end() && found->first <= size + size / kLargestWaste) {
      const auto [block_size, block] = *found;
      waiting_.erase(found);
      waiting_bytes_ -= block_size;
      return used(block, block_size);
    }
    most_used_ = std::max(most_used_, used_bytes_ + size);
    // A quarter of slack: a training step needs its large temporaries when its blocks of other sizes already wait.
    keep_at_most(most_used_ + most_used_ / 4 - used_bytes_ - size);
    return used(fresh(size), size);
  }

  void give_back(void* block) {
    const std::lock_guard lock(mutex_);
    const auto found = sizes_.find(block);
    used_bytes_ -= found->second;
    waiting_bytes_ += found->second;
    waiting_.emplace(found->second, block);
    sizes_.erase(found);
  }

  // Frees every block that waits, and forgets how much was once needed; how many bytes that was.
  int64_t release() {
    const std::lock_guard lock(mutex_);
    const int64_t freed = waiting_bytes_;
    keep_at_most(0);
    most_used_ = used_bytes_;
    return freed;
  }

 private:
  static constexpr int64_t kGranularity = int64_t(1) << 16;
  static constexpr int64_t kHugePage = int64_t(1) << 21;
  static constexpr int64_t kLargestWaste = 4;  // a quarter of what is asked for

  static void* fresh(int64_t size) {
    const bool huge = size >= kHugePage;
    void* const block = std::aligned_alloc(huge ? kHugePage : kGranularity, size);
    if (block == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (huge) madvise(block, size, MADV_HUGEPAGE);  // a hint: that it is refused changes nothing but the time
#endif
    return block;
  }

  void* used(void* block, int64_t size) {
    sizes_.emplace(block, size);
    used_bytes_ += size;
    most_used_ = std::max(most_used_, used_bytes_);
    return block;
  }

  // Frees blocks that wait, largest first, until at most `bytes` are left.
  void keep_at_most(int64_t bytes) {
    while (waiting_bytes_ > bytes) {
      const auto last = std::prev(waiting_.end());
      waiting_bytes_ -= last->first;
      std::free(last->second);
      waiting_.erase(last);
    }
  }

  std::mutex mutex_;
  std::multimap<int64_t, void*> waiting_;
  std::unordered_map<void*, int64_t> sizes_;  // of the blocks in use
  int64_t used_bytes_ = 0, waiting_bytes_ = 0, most_used_ = 0;
};

}  // namespace effnet_kernels::cpu
