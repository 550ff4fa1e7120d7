// The mean over the pixels of each image in inference on CPU, from channels_last to (N, C).
#pragma once

#include "common/cpu/passes.h"

namespace effnet_kernels::cpu {

struct PoolInferenceParams {
  DType dtype;
  int64_t images, channels, pixels;
  const void* x;
  void* out;
};

void pool_inference(const PoolInferenceParams&);

}  // namespace effnet_kernels::cpu
