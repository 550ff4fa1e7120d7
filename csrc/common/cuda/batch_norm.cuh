// A channel's BatchNorm constants, and parameters of any dtype in global memory.
#pragma once

#include "common/cuda/types.h"
#include "common/cuda/vec.cuh"

namespace effnet_kernels::cuda {

EK_DEVICE float read(const Parameter& parameter, int64_t i) {
  switch (parameter.dtype) {
    case DType::float16:
      return widen(load_one(static_cast<const Half*>(parameter.data) + i));
    case DType::bfloat16:
      return widen(load_one(static_cast<const BFloat16*>(parameter.data) + i));
    case DType::float64:
      return float(__ldca(static_cast<const double*>(parameter.data) + i));
    default:
      return load_one(static_cast<const float*>(parameter.data) + i);
  }
}

EK_DEVICE void write(const ParameterGradient& gradient, int64_t i, float value) {
  switch (gradient.dtype) {
    case DType::float16:
      return store_one(static_cast<Half*>(gradient.data) + i, narrow<Half>(value));
    case DType::bfloat16:
      return store_one(static_cast<BFloat16*>(gradient.data) + i, narrow<BFloat16>(value));
    case DType::float64:
      return __stwb(static_cast<double*>(gradient.data) + i, double(value));
    default:
      return store_one(static_cast<float*>(gradient.data) + i, value);
  }
}

// v = (x − mean) · scale + beta, x̂ = (x − mean) · rstd.
struct BatchNormConstants {
  float mean, rstd, scale, beta;

  EK_DEVICE float operator()(float x) const { return fmaf(x - mean, scale, beta); }
};

EK_DEVICE BatchNormConstants constants_of(const BatchNorm& bn, int64_t channel) {
  if (bn.mean.data == nullptr) return {0.0f, 1.0f, 1.0f, 0.0f};
  const float rstd = 1.0f / sqrtf(read(bn.var, channel) + bn.eps);
  return {read(bn.mean, channel), rstd, read(bn.gamma, channel) * rstd, read(bn.beta, channel)};
}

// A factor per image and channel, or per image; 1 where there is none.
EK_DEVICE float factor_of(const Parameter& factor, bool by_image, int64_t image, int64_t channels, int64_t channel) {
  if (factor.data == nullptr) return 1.0f;
  return read(factor, by_image ? image : image * channels + channel);
}

}  // namespace effnet_kernels::cuda
