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

// Which gradients of the 1×1 convolutions are wanted; each is a product of its own. Without an expansion dx always comes
// with the depthwise convolution's gradient.
struct MBConvNeeds {
  bool dx, dw_expand, dw_project;
};

// What is not wanted is empty.
struct MBConvBlockBackward {
  Tensor dx, dw_expand, dw_project;
  MBConvBackward middle;
};

}  // namespace effnet_kernels
