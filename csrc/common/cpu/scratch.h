// Uninitialised scratch memory, aligned for the widest vector. Buffer (buffer.h) is the same filled with zeros.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace effnet_kernels::cpu {

struct FreeScratch {
  void operator()(float* data) const { std::free(data); }
};
using Scratch = std::unique_ptr<float[], FreeScratch>;

inline Scratch make_scratch(int64_t size) {
  constexpr int64_t kAlignment = 64;
  const int64_t bytes = (size * int64_t(sizeof(float)) + kAlignment) / kAlignment * kAlignment;
  auto* const data = static_cast<float*>(std::aligned_alloc(kAlignment, bytes));
  if (data == nullptr) throw std::bad_alloc();
  return Scratch(data);
}

}  // namespace effnet_kernels::cpu
