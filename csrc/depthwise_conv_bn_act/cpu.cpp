// depthwise_conv_bn_act on CPU: act(BN(dwconv(x))), the passes of mbconv_core without BN1 and without SE.
#include <torch/csrc/stable/library.h>

#include "mbconv_core/cpu.h"

namespace effnet_kernels::cpu {
namespace {

MBConvCore core_of(const Tensor& x, const Tensor& w, const Tensor& gamma, const Tensor& beta,
                   const OptionalTensor& mean, const OptionalTensor& var, int64_t stride,
                   const std::vector<int64_t>& padding, double eps, int64_t activation) {
  return {x,
          w,
          std::nullopt,
          {gamma, beta, mean, var, eps},
          std::nullopt,
          stride,
          padding,
          Activation(activation),
          Activation::sigmoid};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& w, const Tensor& gamma,
                                                   const Tensor& beta, const OptionalTensor& mean,
                                                   const OptionalTensor& var, int64_t stride,
                                                   const std::vector<int64_t>& padding, double eps,
                                                   int64_t activation) {
  const MBConvForward r = mbconv_forward(core_of(x, w, gamma, beta, mean, var, stride, padding, eps, activation));
  return {r.out, r.y, r.mean2, r.var2};
}

Tensor inference(const Tensor& x, const Tensor& w, const Tensor& gamma, const Tensor& beta, const Tensor& mean,
                 const Tensor& var, int64_t stride, const std::vector<int64_t>& padding, double eps,
                 int64_t activation) {
  return mbconv_inference(core_of(x, w, gamma, beta, mean, var, stride, padding, eps, activation));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& y,
                                                    const Tensor& w, const Tensor& gamma, const Tensor& beta,
                                                    const Tensor& mean, const Tensor& var, bool training,
                                                    int64_t stride, const std::vector<int64_t>& padding, double eps,
                                                    int64_t activation) {
  const MBConvBackward r = mbconv_backward(core_of(x, w, gamma, beta, mean, var, stride, padding, eps, activation),
                                           grad, y, std::nullopt, false, training);
  return {r.du, r.dw, r.dgamma2, r.dbeta2};
}

}  // namespace
}  // namespace effnet_kernels::cpu

STABLE_TORCH_LIBRARY_IMPL(effnet_kernels, CPU, m) {
  m.impl("depthwise_conv_bn_act", TORCH_BOX(&effnet_kernels::cpu::forward));
  m.impl("depthwise_conv_bn_act_inference", TORCH_BOX(&effnet_kernels::cpu::inference));
  m.impl("depthwise_conv_bn_act_backward", TORCH_BOX(&effnet_kernels::cpu::backward));
}
