// Small blocks of memory that wait, in the thread that freed them, to be used again. The system's allocator takes a hundred
// nanoseconds and more for an aligned one, and every call of an operator has dozens. Knows no torch.
#pragma once

#include <bit>
#include <cstdint>
#include <cstdlib>

namespace effnet_kernels::cpu {

class SmallBlocks {
 public:
  static constexpr int64_t kAlignment = 64, kLargest = int64_t(1) << 15;

  // A block of at least `bytes`, of which there are at most kLargest; null where there is no memory.
  static void* take(int64_t bytes) {
    Waiting& waiting = waiting_for(size_class(bytes));
    if (waiting.count > 0) return waiting.blocks[--waiting.count];
    return std::aligned_alloc(kAlignment, kAlignment << size_class(bytes));
  }

  // Of the size it was taken with, in any thread.
  static void give_back(void* data, int64_t bytes) {
    Waiting& waiting = waiting_for(size_class(bytes));
    if (waiting.count < kMostWaiting) {
      waiting.blocks[waiting.count++] = data;
    } else {
      std::free(data);
    }
  }

 private:
  static constexpr int kRoom = 16;
#if defined(__SANITIZE_ADDRESS__)
  static constexpr int kMostWaiting = 0;  // every block is the allocator's, which finds what is used too late
#else
  static constexpr int kMostWaiting = kRoom;
#endif

  // Blocks of class k have kAlignment · 2^k bytes.
  static constexpr int size_class(int64_t bytes) {
    return std::countr_zero(std::bit_ceil(uint64_t(bytes + kAlignment - 1) / uint64_t(kAlignment)));
  }

  struct Waiting {
    int count = 0;
    void* blocks[kRoom];

    ~Waiting() {
      while (count > 0) std::free(blocks[--count]);
    }
  };
  static Waiting& waiting_for(int k) {
    static thread_local Waiting waiting[size_class(kLargest) + 1];
    return waiting[k];
  }
};

}  // namespace effnet_kernels::cpu
