// mbconv_core on CUDA: SE(act(BN2(dwconv(act(BN1(u)))))), registered; the passes are in mbconv_core/cuda_passes.cpp.
#include <torch/csrc/stable/library.h>

#include "mbconv_core/operators.h"
#include "common/cuda/call.h"

EK_CUDA_LIBRARY(m) {
  using Operator = effnet_kernels::MBConvOperator<effnet_kernels::CudaPasses>;
  m.impl("mbconv_core", TORCH_BOX(&Operator::forward));
  m.impl("mbconv_core_inference", TORCH_BOX(&Operator::inference));
  m.impl("mbconv_core_backward", TORCH_BOX(&Operator::backward));
}
