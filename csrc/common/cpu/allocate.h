// Activation tensors on CPU. A fresh one over the allocator's threshold is memory that the kernel maps and clears page by
// page at the first write, which at 4 KiB a page takes longer than computing it: so huge pages are asked for.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>

#include "common/tensor.h"

namespace effnet_kernels::cpu {

// A hint for the whole huge pages inside [data, data + bytes); that it is refused changes nothing but the time.
inline void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = uintptr_t(1) << 21;
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (address + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (address + uintptr_t(bytes)) / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

inline Tensor with_huge_pages(Tensor t) {
  const int64_t size =
      dispatch_dtype(dtype_of(t), [](auto dtype) { return int64_t(sizeof(typename decltype(dtype)::type)); });
  if (t.numel() > 0) advise_huge_pages(t.mutable_data_ptr(), t.numel() * size);
  return t;
}

inline Tensor allocate_activations(const Tensor& like, const Sizes& sizes, Layout layout) {
  return with_huge_pages(empty_activations(like, sizes, layout));
}

inline Tensor allocate_like(const Tensor& activations) {
  return with_huge_pages(torch::stable::empty_like(activations));
}

}  // namespace effnet_kernels::cpu
