// mbconv on CPU: project(SE(act(BN2(dwconv(act(BN1(expand(x)))))))), registered; the passes are in mbconv/cpu_passes.cpp.
#include <torch/csrc/stable/library.h>

#include "mbconv/operators.h"

STABLE_TORCH_LIBRARY_IMPL(effnet_kernels, CPU, m) {
  using Operator = effnet_kernels::MBConvBlockOperator;
  m.impl("mbconv", TORCH_BOX(&Operator::forward));
  m.impl("mbconv_backward", TORCH_BOX(&Operator::backward));
}
