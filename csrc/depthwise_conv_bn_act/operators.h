// depthwise_conv_bn_act's three operators over a backend's sequence of passes, that of mbconv_core without BN1 and SE.
#pragma once

#include "mbconv_core/passes.h"

namespace effnet_kernels {

inline MBConvCore depthwise_core_of(const Tensor& x, const Tensor& w, const Tensor& gamma, const Tensor& beta,
                                    const OptionalTensor& mean, const OptionalTensor& var, int64_t stride,
                                    const std::vector<int64_t>& padding, double eps, int64_t activation) {
  const MBConvCore core{x,
                        w,
                        std::nullopt,
                        {gamma, beta, mean, var, eps},
                        std::nullopt,
                        stride,
                        padding,
                        activation_of(activation),
                        Activation::sigmoid};
  check_activations(x, "x");
  check_parameters(core);
  return core;
}

template <class Passes>
struct DepthwiseOperator {
  static std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& w, const Tensor& gamma,
                                                            const Tensor& beta, const OptionalTensor& mean,
                                                            const OptionalTensor& var, int64_t stride,
                                                            const std::vector<int64_t>& padding, double eps,
                                                            int64_t activation) {
    const MBConvForward r =
        Passes::forward(depthwise_core_of(x, w, gamma, beta, mean, var, stride, padding, eps, activation));
    return {r.out, r.y, or_empty(r.mean2, x), or_empty(r.var2, x)};
  }

  static Tensor inference(const Tensor& x, const Tensor& w, const Tensor& gamma, const Tensor& beta, const Tensor& mean,
                          const Tensor& var, int64_t stride, const std::vector<int64_t>& padding, double eps,
                          int64_t activation) {
    return Passes::inference(depthwise_core_of(x, w, gamma, beta, mean, var, stride, padding, eps, activation), true)
        .out;
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& y,
                                                             const Tensor& w, const Tensor& gamma, const Tensor& beta,
                                                             const Tensor& mean, const Tensor& var, bool training,
                                                             int64_t stride, const std::vector<int64_t>& padding,
                                                             double eps, int64_t activation) {
    const MBConvBackward r =
        Passes::backward(depthwise_core_of(x, w, gamma, beta, mean, var, stride, padding, eps, activation), grad, y,
                         std::nullopt, false, training);
    return {r.du, r.dw, r.dgamma2, r.dbeta2};
  }
};

}  // namespace effnet_kernels
