// Large tensors on CPU, in memory that is kept from one call to the next.
//
// Memory fresh from the kernel is mapped and cleared page by page at its first write, which takes longer than most passes
// take to compute what is written; and the allocator gives every large tensor back to the kernel when it is freed. So
// large activations and gradients live in blocks that wait here for the next tensor that fits.
#pragma once

#include "common/tensor.h"

namespace effnet_kernels::cpu {

// An uninitialised activation tensor.
Tensor allocate_activations(const Tensor& like, const Sizes& sizes, Layout layout);

// The same, of the sizes and the layout of `activations`, which is dense.
inline Tensor allocate_like(const Tensor& activations) {
  Sizes sizes;
  for (int d = 0; d < activations.dim(); ++d) sizes.push_back(activations.size(d));
  return allocate_activations(activations, sizes, layout_of(activations));
}

// An uninitialised tensor for the gradient of `parameter`, in its dtype and, where that is dense, its strides.
Tensor allocate_gradient(const Tensor& parameter);

}  // namespace effnet_kernels::cpu
