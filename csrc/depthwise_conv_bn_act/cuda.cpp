// depthwise_conv_bn_act on CUDA: act(BN(dwconv(x))), registered; the passes are in mbconv_core/cuda_passes.cpp.
#include <torch/csrc/stable/library.h>

#include "depthwise_conv_bn_act/operators.h"
#include "common/cuda/call.h"

EK_CUDA_LIBRARY(m) {
  using Operator = effnet_kernels::DepthwiseOperator<effnet_kernels::CudaPasses>;
  m.impl("depthwise_conv_bn_act", TORCH_BOX(&Operator::forward));
  m.impl("depthwise_conv_bn_act_inference", TORCH_BOX(&Operator::inference));
  m.impl("depthwise_conv_bn_act_backward", TORCH_BOX(&Operator::backward));
}
