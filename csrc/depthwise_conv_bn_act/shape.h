// The geometry of a depthwise convolution: one definition for the CPU and the CUDA kernels.
#pragma once

#include <cstdint>

#include "common/dispatch.h"

namespace effnet_kernels {

struct DepthwiseShape {
  int64_t images, channels, height, width, out_height, out_width;
  int kernel_size, stride, top, left;

  EK_HOST_DEVICE int taps() const { return kernel_size * kernel_size; }
  EK_HOST_DEVICE int64_t pixels() const { return height * width; }
  EK_HOST_DEVICE int64_t out_pixels() const { return out_height * out_width; }
};

}  // namespace effnet_kernels
