// What the CUDA launch functions take besides activations: plain structs, on the host and in kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/cuda/device.h"
#include "common/dispatch.h"

namespace effnet_kernels::cuda {

// Values per channel in any floating-point dtype; data may be null where there are none.
struct Parameter {
  const void* data;
  DType dtype;
};
struct ParameterGradient {
  void* data;
  DType dtype;
};

// v = (x − mean) · rstd · γ + β with rstd = 1 / √(var + eps). Without data in mean: v = x.
struct BatchNorm {
  Parameter gamma, beta, mean, var;
  float eps;
};

template <class F>
decltype(auto) dispatch_activation_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float16:
      return f(Type<Half>{});
    case DType::bfloat16:
      return f(Type<BFloat16>{});
    default:
      return f(Type<float>{});
  }
}

}  // namespace effnet_kernels::cuda
