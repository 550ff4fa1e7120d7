// A prepared convolution and what it is applied to, checked.
#pragma once

#include "common/cpu/prepared.h"
#include "conv_inference/cpu.h"

namespace effnet_kernels::cpu {

struct ConvLayer {
  int64_t out_channels, kernel_size, stride;
  const int64_t* padding;  // top, bottom, left, right
  int64_t activation;
  bool bfloat16_products;
};

// The layer's kernel for x, with the next sections of the weights; without a residual and without memory for the result.
ConvInferenceParams conv_of(const Activations& x, const ConvLayer& layer, Sections& weights);

}  // namespace effnet_kernels::cpu
