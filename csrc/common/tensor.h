// What the operators ask of a tensor: layout, dtype, allocation. Arguments were checked in Python, where the message can
// name them; the checks here keep a direct call of torch.ops from reading memory that is not there.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <tuple>
#include <vector>

#include "common/dispatch.h"

namespace effnet_kernels {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::Half:
      return DType::float16;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    case ScalarType::Double:
      return DType::float64;
    default:
      STD_TORCH_CHECK(false, "expected a float32, float16, bfloat16 or float64 tensor");
  }
}

inline bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4) return false;
  int64_t expected = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// NCHW where the tensor is contiguous, as in effnet_kernels/tensors.py. Single pixels are both; their channels are
// neighbours, so they count as channels_last.
inline Layout layout_of(const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 4, "expected 4 dimensions (N, C, H, W), got ", t.dim());
  const bool single_pixels = t.size(2) == 1 && t.size(3) == 1;
  if (t.is_contiguous() && !single_pixels) return Layout::nchw;
  STD_TORCH_CHECK(is_channels_last(t) || t.numel() == 0, "expected a dense tensor, contiguous or channels_last");
  return Layout::nhwc;
}

inline void check_device(const Tensor& t, const Tensor& like, const char* argument) {
  STD_TORCH_CHECK(t.device().type() == like.device().type() && t.device().index() == like.device().index(), argument,
                  ": expected the device of the input");
}

inline void check_dense_like(const Tensor& t, const Tensor& like, Layout layout, const char* argument) {
  STD_TORCH_CHECK(t.defined() && t.dim() == 4 && t.scalar_type() == like.scalar_type(), argument,
                  ": expected 4 dimensions and the dtype of the input");
  for (int d = 0; d < 4; ++d) {
    STD_TORCH_CHECK(t.size(d) == like.size(d), argument, ": expected size ", like.size(d), " in dimension ", d,
                    ", got ", t.size(d));
  }
  check_device(t, like, argument);
  const bool dense = layout == Layout::nchw ? t.is_contiguous() : is_channels_last(t);
  STD_TORCH_CHECK(dense || t.numel() == 0, argument, ": expected the layout of the input");
}

inline Tensor empty_activations(const Tensor& like, const Sizes& sizes, Layout layout) {
  return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              layout == Layout::nchw ? MemoryFormat::Contiguous : MemoryFormat::ChannelsLast);
}

// An uninitialised tensor of per-channel values: float64 for float64 activations, else float32.
inline Tensor empty_vector(const Tensor& like, const Sizes& sizes) {
  const auto dtype = like.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  return torch::stable::empty(sizes, dtype, std::nullopt, like.device());
}

}  // namespace effnet_kernels
