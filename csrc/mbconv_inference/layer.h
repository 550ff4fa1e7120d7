// A prepared MBConv block and what it is applied to, checked.
#pragma once

#include "common/cpu/prepared.h"
#include "mbconv_inference/cpu.h"

namespace effnet_kernels::cpu {

struct MBConvLayer {
  int64_t channels, out_channels, squeezed, kernel_size, stride;
  const int64_t* padding;  // top, bottom, left, right
  int64_t activation, gate;
  bool expands, residual, bfloat16_products;
};

// The block's kernel for x, with the next sections of the weights; without memory for the result.
MBConvInferenceParams mbconv_of(const Activations& x, const MBConvLayer& layer, Sections& weights);

}  // namespace effnet_kernels::cpu
