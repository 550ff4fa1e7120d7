// Large blocks of memory that wait to be used again. Knows no torch.
//
// Memory comes from regions of addresses that are reserved once, as large as the machine's memory where the system
// allows that, and begin to be used from their front. A block is the smallest run of free memory that it fits, or else it
// makes the used part of the region longer; neighbours that are free are one run. So what a backward pass frees, last
// first, becomes one piece again, from which its own larger blocks are cut, and the next step finds all its memory
// where the last one left it.
#pragma once

#include <sys/mman.h>
#include <unistd.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <set>
#include <utility>

namespace effnet_kernels::cpu {

class BlockCache {
 public:
  // The library's own, for what lives no longer than a step. Never destroyed: tensors may outlive every static object.
  static BlockCache& instance() {
    static BlockCache* const blocks = new BlockCache;
    return *blocks;
  }
  // For parameters' gradients: they may outlive the step, and lying among its activations they would keep what is free
  // between them in pieces.
  static BlockCache& of_gradients() {
    static BlockCache* const blocks = new BlockCache;
    return *blocks;
  }

  // A block of at least `bytes`.
  void* take(int64_t bytes) {
    if (bytes > INT64_MAX / 2) throw std::bad_alloc();
    const std::lock_guard lock(mutex_);
    const int64_t size = rounded(bytes, kGranularity);
    const auto fits = free_.lower_bound({size, nullptr});
    const auto run = fits == free_.end() ? append(size) : runs_.find(fits->second);
    if (fits != free_.end()) free_.erase(fits);
    split(run, size);
    run->second.free = false;
    run->second.touched = size;
    allow_access(run->first, bytes);
    return run->first;
  }

  void give_back(void* data) {
    const std::lock_guard lock(mutex_);
    auto run = runs_.find(static_cast<char*>(data));
    forbid_access(run->first, run->second.size);
    run->second.free = true;
    merge_with_next(run);
    if (run != runs_.begin() && are_one_piece(std::prev(run), run) && std::prev(run)->second.free) {
      run = std::prev(run);
      free_.erase({run->second.size, run->first});
      merge_with_next(run);
    }
    free_.insert({run->second.size, run->first});
  }

  // Gives the pages of all that is free back to the system; how many bytes that was.
  int64_t release() {
    const std::lock_guard lock(mutex_);
    int64_t bytes = 0;
    for (const auto& [size, begin] : free_) {
      int64_t& touched = runs_.find(begin)->second.touched;
      if (touched > 0) madvise(begin, size, MADV_DONTNEED);
      bytes += std::exchange(touched, 0);
    }
    return bytes;
  }

 private:
  static constexpr int64_t kGranularity = int64_t(1) << 12;
  static constexpr int64_t kHugePage = int64_t(1) << 21;

  struct Run {
    int64_t size;
    int64_t touched;  // bytes that may be in memory
    char* region;     // where its region begins
    bool free;
  };
  using Runs = std::map<char*, Run>;

  struct Region {
    int64_t size;
    int64_t used;  // bytes from the front that runs are in
  };

  static int64_t rounded(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

  static bool are_one_piece(Runs::iterator run, Runs::iterator next) {
    return run->second.region == next->second.region;
  }

  // Leaves `size` in a run that `free_` does not have; the rest is a free run of its own.
  void split(Runs::iterator run, int64_t size) {
    const int64_t rest = run->second.size - size;
    if (rest == 0) return;
    char* const begin = run->first + size;
    runs_.emplace(begin, Run{rest, std::min(rest, run->second.touched), run->second.region, true});
    free_.insert({rest, begin});
    run->second.size = size;
  }

  // Adds the next run, if it is free, to a run that `free_` does not have.
  void merge_with_next(Runs::iterator run) {
    const auto next = std::next(run);
    if (next == runs_.end() || !are_one_piece(run, next) || !next->second.free) return;
    free_.erase({next->second.size, next->first});
    run->second.size += next->second.size;
    run->second.touched += next->second.touched;
    runs_.erase(next);
  }

  // A run of `size` that `free_` does not have, at the end of what the newest region's blocks use.
  Runs::iterator append(int64_t size) {
    if (newest_ == nullptr || !has_room(size)) reserve(size);
    Region& region = regions_.at(newest_);
    char* const end = newest_ + region.used;
    const auto last = last_run(end);
    const int64_t begun = last == runs_.end() ? 0 : last->second.size;
    region.used += size - begun;
    forbid_access(end, size - begun);
    if (last == runs_.end()) return runs_.emplace(end, Run{size, 0, newest_, true}).first;
    free_.erase({begun, last->first});
    last->second.size = size;
    return last;
  }

  bool has_room(int64_t size) const {
    const Region& region = regions_.at(newest_);
    return size <= region.size - region.used;
  }

  // The free run that ends there, in the newest region.
  Runs::iterator last_run(char* end) {
    if (end == newest_) return runs_.end();
    const auto last = std::prev(runs_.lower_bound(end));
    return last->second.free ? last : runs_.end();
  }

  // A region as large as the machine's memory, or, where that is refused, as a single block.
  void reserve(int64_t size) {
    const int64_t memory = int64_t(sysconf(_SC_PHYS_PAGES)) * int64_t(sysconf(_SC_PAGESIZE));
    const int64_t least = rounded(size, kHugePage);
    if (least <= memory && map_region(rounded(memory, kHugePage), MAP_NORESERVE)) return;
    if (map_region(least, 0)) return;
    unmap_free_regions();
    if (!map_region(least, 0)) throw std::bad_alloc();
  }

  // Addresses alone: no memory is behind them before they are written to.
  bool map_region(int64_t size, int flags) {
    void* const mapped =
        mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    if (mapped == MAP_FAILED) return false;
    const int64_t before = -reinterpret_cast<intptr_t>(mapped) & (kHugePage - 1);
    newest_ = static_cast<char*>(mapped) + before;
    if (before > 0) munmap(mapped, before);
    munmap(newest_ + size, kHugePage - before);
#ifdef MADV_HUGEPAGE
    madvise(newest_, size, MADV_HUGEPAGE);  // a hint: that it is refused changes nothing but the time
#endif
    regions_.emplace(newest_, Region{size, 0});
    return true;
  }

  void unmap_free_regions() {
    for (auto region = regions_.begin(); region != regions_.end();) {
      const auto run = runs_.find(region->first);
      if (run == runs_.end() || !run->second.free || run->second.size < region->second.used) {
        ++region;
        continue;
      }
      allow_access(run->first, run->second.size);
      munmap(region->first, region->second.size);
      free_.erase({run->second.size, run->first});
      runs_.erase(run);
      if (newest_ == region->first) newest_ = nullptr;
      region = regions_.erase(region);
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
  std::map<char*, Region> regions_;
  char* newest_ = nullptr;  // the region that may become longer
};

}  // namespace effnet_kernels::cpu
