// Scratch memory, aligned for the widest vector: filled with zeros, or not where all of it is written before it is read.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "common/cpu/block_cache.h"

namespace effnet_kernels::cpu {

template <class A>
class Buffer {
 public:
  explicit Buffer(int64_t size) : Buffer(size, Unfilled{}) { std::memset(data_, 0, bytes_of(size)); }
  static Buffer unfilled(int64_t size) { return Buffer(size, Unfilled{}); }

  Buffer(Buffer&& other) noexcept : data_(other.data_), size_(other.size_), cached_(other.cached_) {
    other.data_ = nullptr;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(cached_, other.cached_);
    return *this;
  }
  ~Buffer() {
    if (cached_ && data_ != nullptr) {
      BlockCache::instance().give_back(data_);
    } else {
      std::free(data_);
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
    cached_ = bytes >= kSmallestCached;
    data_ = static_cast<A*>(cached_ ? BlockCache::instance().take(bytes) : std::aligned_alloc(kAlignment, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
  }

  static constexpr int64_t kAlignment = 64;
  // Less than of a tensor (allocate.cpp): no scratch lives for long.
  static constexpr int64_t kSmallestCached = int64_t(1) << 15;
  static int64_t bytes_of(int64_t size) { return (size * int64_t(sizeof(A)) + kAlignment) / kAlignment * kAlignment; }

  A* data_;
  int64_t size_;
  bool cached_;  // from BlockCache
};

}  // namespace effnet_kernels::cpu
