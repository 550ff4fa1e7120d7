// What the inference operators check of their input, and of weights that Python folded and packed.
#pragma once

#include "common/cpu/passes.h"
#include "common/tensor.h"

namespace effnet_kernels::cpu {

inline void check_prepared_input(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, "x: expected 4 dimensions (N, C, H, W), got ", x.dim());
  STD_TORCH_CHECK(dtype_of(x) != DType::float64, "x: expected float32, float16 or bfloat16");
  STD_TORCH_CHECK(is_channels_last(x) || x.numel() == 0, "x: expected a dense channels_last tensor");
}

inline const float* vector_data(const Tensor& t, int64_t size, const char* argument) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.is_contiguous() && t.numel() == size, argument,
                  ": expected ", size, " contiguous float32 values, got ", t.numel());
  return static_cast<const float*>(t.const_data_ptr());
}

// A matrix [depth, columns] in packed_matrix.h's form.
inline const float* packed_data(const Tensor& t, int64_t depth, int64_t columns, const char* argument) {
  return vector_data(t, depth * padded_channels(columns), argument);
}

}  // namespace effnet_kernels::cpu
