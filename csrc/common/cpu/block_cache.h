// Large blocks of memory that wait to be used again. Knows no torch.
//
// Memory comes from the system in segments, each as large as the block that asked for it. A block is the smallest run of
// free memory in a segment that it fits, and what is left of the run stays free; neighbours that are free are one run. So
// a training step, which asks for the same blocks as the last in the same order, is served without a new segment.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <set>
#include <utility>

namespace effnet_kernels::cpu {

class BlockCache {
 public:
  // The library's own.
  static BlockCache& instance() {
    static BlockCache* const blocks = new BlockCache;  // never destroyed: tensors may outlive every static object
    return *blocks;
  }

  // A block of at least `bytes`.
  void* take(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    const int64_t size = (bytes + kGranularity - 1) / kGranularity * kGranularity;
    const auto fits = free_.lower_bound({size, nullptr});
    char* block = nullptr;
    if (fits != free_.end()) {
      block = fits->second;
      free_.erase(fits);
      split(block, size);
    } else {
      // A quarter of slack: what is left of runs that are in use may fit nothing.
      const int64_t most = std::max(most_used_, used_bytes_ + size);
      free_segments(most + most / 4 - size);
      block = fresh_segment(size);
    }
    used_bytes_ += size;
    most_used_ = std::max(most_used_, used_bytes_);
    allow_access(block, bytes);
    return block;
  }

  void give_back(void* data) {
    const std::lock_guard lock(mutex_);
    auto run = runs_.find(static_cast<char*>(data));
    used_bytes_ -= run->second.size;
    forbid_access(run->first, run->second.size);
    run->second.free = true;
    merge_with_next(run);
    if (run->first != run->second.segment && std::prev(run)->second.free) {
      run = std::prev(run);
      free_.erase({run->second.size, run->first});
      merge_with_next(run);
    }
    free_.insert({run->second.size, run->first});
  }

  // Frees every segment none of which is in use, and forgets how much was once needed; how many bytes that was.
  int64_t release() {
    const std::lock_guard lock(mutex_);
    const int64_t before = held_bytes_;
    free_segments(0);
    most_used_ = used_bytes_;
    return before - held_bytes_;
  }

 private:
  static constexpr int64_t kGranularity = int64_t(1) << 12;
  static constexpr int64_t kHugePage = int64_t(1) << 21;

  struct Run {
    int64_t size;
    char* segment;  // where its segment begins
    int64_t segment_size;
    bool free;
  };
  using Runs = std::map<char*, Run>;

  // The block at the front of the free run that begins there, which `free_` no longer has.
  void split(char* block, int64_t size) {
    Run& run = runs_.find(block)->second;
    run.free = false;
    if (run.size == size) return;
    const Run rest{run.size - size, run.segment, run.segment_size, true};
    run.size = size;
    runs_.emplace(block + size, rest);
    free_.insert({rest.size, block + size});
  }

  // Adds the next run of the segment, if that is free, to a run that `free_` does not have.
  void merge_with_next(Runs::iterator run) {
    const auto next = std::next(run);
    if (next != runs_.end() && next->second.segment == run->second.segment && next->second.free) {
      free_.erase({next->second.size, next->first});
      run->second.size += next->second.size;
      runs_.erase(next);
    }
  }

  char* fresh_segment(int64_t size) {
    const bool huge = size >= kHugePage;
    const auto allocate = [&] { return static_cast<char*>(std::aligned_alloc(huge ? kHugePage : kGranularity, size)); };
    char* segment = allocate();
    if (segment == nullptr) {
      free_segments(0);
      segment = allocate();
    }
    if (segment == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (huge) madvise(segment, size, MADV_HUGEPAGE);  // a hint: that it is refused changes nothing but the time
#endif
    forbid_access(segment, size);
    held_bytes_ += size;
    runs_.emplace(segment, Run{size, segment, size, false});
    return segment;
  }

  // Frees segments of which nothing is in use, smallest first, until at most `bytes` are held.
  void free_segments(int64_t bytes) {
    for (auto entry = free_.begin(); entry != free_.end() && held_bytes_ > bytes;) {
      const auto run = runs_.find(entry->second);
      if (run->second.size < run->second.segment_size) {
        ++entry;
        continue;
      }
      held_bytes_ -= run->second.size;
      allow_access(run->first, run->second.size);
      std::free(run->first);
      runs_.erase(run);
      entry = free_.erase(entry);
    }
  }

  // What AddressSanitizer reports the use of.
  static void allow_access([[maybe_unused]] char* begin, [[maybe_unused]] int64_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(begin, bytes);
#endif
  }
  static void forbid_access([[maybe_unused]] char* begin, [[maybe_unused]] int64_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_POISON_MEMORY_REGION(begin, bytes);
#endif
  }

  std::mutex mutex_;
  Runs runs_;
  std::set<std::pair<int64_t, char*>> free_;  // size and beginning of every free run
  int64_t used_bytes_ = 0, held_bytes_ = 0, most_used_ = 0;
};

}  // namespace effnet_kernels::cpu
