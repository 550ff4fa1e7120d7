// A whole MBConv block without its last BatchNorm: mbconv_core between its two 1×1 convolutions.
#pragma once

#include "mbconv_core/passes.h"

namespace effnet_kernels {

// The middle's core, of which u is the block's input where there is no expansion and else not yet known.
struct MBConvBlock {
  Tensor x;
  OptionalTensor w_expand;
  MBConvCore core;
  Tensor w_project;
};

struct MBConvBlockForward {
  Tensor out, u;
  MBConvForward middle;
};

struct MBConvBlockBackward {
  Tensor dx, dw_expand, dw_project;
  MBConvBackward middle;
};

}  // namespace effnet_kernels
