// What the operators with 1×1 convolutions ask of their arguments.
#pragma once

#include "common/checks.h"

namespace effnet_kernels {

inline void check_pointwise_weight(const Tensor& w, int64_t in_channels, const Tensor& like, const char* argument) {
  STD_TORCH_CHECK(
      w.defined() && w.dim() == 4 && w.size(0) >= 1 && w.size(1) == in_channels && w.size(2) == 1 && w.size(3) == 1,
      argument, ": expected shape (O, ", in_channels, ", 1, 1)");
  check_values(w, w.size(0) * in_channels, like, argument);
}

inline void check_channels_last(const Tensor& t, const Tensor& like, const char* argument) {
  STD_TORCH_CHECK(
      t.defined() && t.dim() == 4 && (is_channels_last(t) || t.numel() == 0) && t.scalar_type() == like.scalar_type(),
      argument, ": expected a dense channels_last tensor in the dtype of x");
  check_device(t, like, argument);
}

}  // namespace effnet_kernels
