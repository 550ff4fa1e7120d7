// What the operators ask of a tensor: layout, dtype, allocation. Arguments were checked in Python, where the message can
// name them; the checks here keep a direct call of torch.ops from reading memory that is not there.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
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

// From the innermost dimension of the layout outward; rows of a matrix lie like NCHW.
inline Sizes dense_strides(const Sizes& sizes, Layout layout) {
  Sizes strides(sizes.size());
  int64_t step = 1;
  const auto next = [&](size_t d) {
    strides[d] = step;
    step *= sizes[d];
  };
  if (layout == Layout::nhwc) {
    for (const size_t d : {1, 3, 2, 0}) next(d);
  } else {
    for (size_t d = sizes.size(); d-- > 0;) next(d);
  }
  return strides;
}

// An uninitialised tensor on the device of `like`, by torch's C interface: torch::stable::empty looks its operator up by
// name, which for a vector takes longer than to fill it.
inline Tensor empty_dense(const Tensor& like, ScalarType dtype, const Sizes& sizes, Layout layout = Layout::nchw) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const Sizes strides = dense_strides(sizes, layout);
  const auto device = like.device();
  AtenTensorHandle handle = nullptr;
  const AOTITorchError error =
      aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(), to<int32_t>(from(dtype)),
                               to<int32_t>(from(device.type())), device.index(), &handle);
  STD_TORCH_CHECK(error == 0, "out of memory for a tensor, or it has too many elements");
  return Tensor(handle);
}

inline Tensor empty_activations(const Tensor& like, const Sizes& sizes, Layout layout) {
  return empty_dense(like, like.scalar_type(), sizes, layout);
}

// An uninitialised tensor of per-channel values: float64 for float64 activations, else float32.
inline Tensor empty_vector(const Tensor& like, const Sizes& sizes) {
  return empty_dense(like, like.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float, sizes);
}

// What an operator returns for a result that may not apply, which is then undefined: an empty vector of its own.
inline Tensor or_empty(const Tensor& result, const Tensor& like) {
  return result.defined() ? result : empty_vector(like, {0});
}

}  // namespace effnet_kernels
