// Zero-filled scratch memory, aligned for the widest vector.
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
  explicit Buffer(int64_t size) : size_(size) {
    constexpr int64_t kAlignment = 64;
    if (size < 0 || size > (INT64_MAX - kAlignment) / int64_t(sizeof(A))) throw std::bad_alloc();
    const int64_t bytes = (size * int64_t(sizeof(A)) + kAlignment) / kAlignment * kAlignment;
    cached_ = bytes >= BlockCache::kSmallestBlock;
    data_ = static_cast<A*>(cached_ ? BlockCache::instance().take(bytes) : std::aligned_alloc(kAlignment, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(data_, 0, bytes);
  }
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
  A* data_;
  int64_t size_;
  bool cached_;  // from BlockCache
};

}  // namespace effnet_kernels::cpu
