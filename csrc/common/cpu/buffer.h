// Scratch memory, aligned for the widest vector: filled with zeros, or not where all of it is written before it is read.
#pragma once

#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

#include "common/cpu/block_cache.h"
#include "common/cpu/small_blocks.h"

namespace effnet_kernels::cpu {

template <class A>
class Buffer {
 public:
  explicit Buffer(int64_t size) : Buffer(size, Unfilled{}) { std::memset(data_, 0, bytes_of(size)); }
  static Buffer unfilled(int64_t size) { return Buffer(size, Unfilled{}); }

  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() {
    if (data_ == nullptr) return;
    if (is_small()) {
      SmallBlocks::give_back(data_, bytes_of(size_));
    } else {
      BlockCache::instance().give_back(data_);
    }
  }

  A* data() { return data_; }
  const A* data() const { return data_; }
  int64_t size() const { return size_; }
  A& operator[](int64_t i) { return data_[i]; }
  const A& operator[](int64_t i) const { return data_[i]; }

 private:
  struct Unfilled {};

  Buffer(int64_t size, Unfilled) : size_(size) {
    if (size < 0 || size > (INT64_MAX - kAlignment) / int64_t(sizeof(A))) throw std::bad_alloc();
    const int64_t bytes = bytes_of(size);
    data_ = static_cast<A*>(is_small() ? SmallBlocks::take(bytes) : BlockCache::instance().take(bytes));
    if (data_ == nullptr) throw std::bad_alloc();
  }

  static constexpr int64_t kAlignment = SmallBlocks::kAlignment;
  static int64_t bytes_of(int64_t size) { return (size * int64_t(sizeof(A)) + kAlignment) / kAlignment * kAlignment; }
  bool is_small() const { return bytes_of(size_) <= SmallBlocks::kLargest; }

  A* data_;
  int64_t size_;
};

}  // namespace effnet_kernels::cpu
