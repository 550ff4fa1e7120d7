// What the inference operators check of their input, and of weights that Python folded and packed.
#pragma once

#include "common/checks.h"
#include "common/cpu/passes.h"

namespace effnet_kernels::cpu {

// Beyond it, products of two numbers of channels and a kernel's size might not be numbers any more.
inline constexpr int64_t kMostChannels = 1 << 22;

inline void check_channels(int64_t channels, int64_t least, const char* argument) {
  STD_TORCH_CHECK(channels >= least && channels <= kMostChannels, argument, ": expected ", least, " to ", kMostChannels,
                  ", got ", channels);
}

// (N, C, H, W) of any strides.
inline void check_prepared_input(const Tensor& x) {
  STD_TORCH_CHECK(x.defined() && x.dim() == 4, "x: expected 4 dimensions (N, C, H, W)");
  STD_TORCH_CHECK(is_floating(x) && dtype_of(x) != DType::float64, "x: expected float32, float16 or bfloat16");
  STD_TORCH_CHECK(x.size(1) >= 1 && x.size(1) <= kMostChannels && x.size(2) >= 1 && x.size(3) >= 1, "x: expected 1 to ",
                  kMostChannels, " channels, and H and W of at least 1, got ", x.size(1), ", ", x.size(2), ", ",
                  x.size(3));
}

// One side of the output: of `size` pixels with margins of `before` and `after`.
inline int64_t prepared_output_size(int64_t size, int64_t kernel_size, int64_t stride, int64_t before, int64_t after) {
  for (const int64_t margin : {before, after}) {
    STD_TORCH_CHECK(margin >= 0 && margin < kernel_size, "padding: expected 0 to kernel_size - 1, got ", margin);
  }
  STD_TORCH_CHECK(size + before + after >= kernel_size, "x: smaller than the kernel");
  return (size + before + after - kernel_size) / stride + 1;
}

inline const float* vector_data(const Tensor& t, int64_t size, const Tensor& like, const char* argument) {
  check_values(t, size, like, argument);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.is_contiguous(), argument,
                  ": expected contiguous float32 values");
  return static_cast<const float*>(t.const_data_ptr());
}

// A matrix [depth, columns] in packed_matrix.h's form.
inline const float* packed_data(const Tensor& t, int64_t depth, int64_t columns, const Tensor& like,
                                const char* argument) {
  return vector_data(t, depth * padded_channels(columns), like, argument);
}

}  // namespace effnet_kernels::cpu
