// depthwise_conv_bn_act on CPU: act(BN(dwconv(x))), registered; the passes are in mbconv_core/cpu_passes.cpp.
#include <torch/csrc/stable/library.h>

#include "depthwise_conv_bn_act/operators.h"

STABLE_TORCH_LIBRARY_IMPL(effnet_kernels, CPU, m) {
  using Operator = effnet_kernels::DepthwiseOperator<effnet_kernels::CpuPasses>;
  m.impl("depthwise_conv_bn_act", TORCH_BOX(&Operator::forward));
  m.impl("depthwise_conv_bn_act_inference", TORCH_BOX(&Operator::inference));
  m.impl("depthwise_conv_bn_act_backward", TORCH_BOX(&Operator::backward));
}
