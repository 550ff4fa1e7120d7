// The geometry of a depthwise convolution: one definition for the CPU and the CUDA kernels.
#pragma once

#include <cstdint>

namespace effnet_kernels {

struct DepthwiseShape {
  int64_t images, channels, height, width, out_height, out_width;
  int kernel_size, stride, top, left;

  int taps() const { return kernel_size * kernel_size; }
  int64_t pixels() const { return height * width; }
  int64_t out_pixels() const { return out_height * out_width; }
};

}  // namespace effnet_kernels
