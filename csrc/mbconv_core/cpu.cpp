// mbconv_core on CPU: SE(act(BN2(dwconv(act(BN1(u)))))), registered; the passes are in mbconv_core/cpu_passes.cpp.
#include <torch/csrc/stable/library.h>

#include "mbconv_core/operators.h"

STABLE_TORCH_LIBRARY_IMPL(effnet_kernels, CPU, m) {
  using Operator = effnet_kernels::MBConvOperator<effnet_kernels::CpuPasses>;
  m.impl("mbconv_core", TORCH_BOX(&Operator::forward));
  m.impl("mbconv_core_inference", TORCH_BOX(&Operator::inference));
  m.impl("mbconv_core_backward", TORCH_BOX(&Operator::backward));
}
