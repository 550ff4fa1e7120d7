// mbconv_core's three operators over a backend's sequence of passes: the arguments of csrc/ops.cpp to MBConvCore and back.
#pragma once

#include "mbconv_core/passes.h"

namespace effnet_kernels {

inline MBConvCore mbconv_core_of(const Tensor& u, const Tensor& w, const OptionalTensor& gamma1,
                                 const OptionalTensor& beta1, const OptionalTensor& mean1, const OptionalTensor& var1,
                                 const Tensor& gamma2, const Tensor& beta2, const OptionalTensor& mean2,
                                 const OptionalTensor& var2, const OptionalTensor& w1, const OptionalTensor& b1,
                                 const OptionalTensor& w2, const OptionalTensor& b2, int64_t stride,
                                 const std::vector<int64_t>& padding, double eps1, double eps2, int64_t activation,
                                 int64_t gate) {
  check_all_or_none({&gamma1, &beta1}, "gamma1, beta1");
  check_all_or_none({&w1, &b1, &w2, &b2}, "w1, b1, w2, b2");
  MBConvCore core{u,
                  w,
                  std::nullopt,
                  {gamma2, beta2, mean2, var2, eps2},
                  std::nullopt,
                  stride,
                  padding,
                  activation_of(activation),
                  gate_of(gate)};
  if (gamma1) core.bn1 = BatchNormTensors{*gamma1, *beta1, mean1, var1, eps1};
  if (w1) core.se = ExciteTensors{*w1, *b1, *w2, *b2};
  check_activations(u, "u");
  check_parameters(core);
  return core;
}

// What the forward call saved for the backward of `core`, none without SE.
inline std::optional<ExciteSaved> excite_saved_of(const MBConvCore& core, const OptionalTensor& pooled,
                                                  const OptionalTensor& hidden, const OptionalTensor& logits,
                                                  const OptionalTensor& a3, const OptionalTensor& a5) {
  STD_TORCH_CHECK(!core.bn1 || core.bn1->mean, "mean1: expected the statistics of the forward call");
  if (!core.se) return std::nullopt;
  check_all_or_none({&core.bn2.mean, &pooled, &hidden, &logits, &a3, &a5}, "pooled, hidden, logits, a3, a5");
  const int64_t images = core.u.size(0), channels = core.w.size(0);
  check_saved(*pooled, images * channels, core.u, "pooled");
  check_saved(*hidden, images * core.se->w1.size(0), core.u, "hidden");
  check_saved(*logits, images * channels, core.u, "logits");
  check_saved(*a3, images * channels, core.u, "a3");
  check_saved(*a5, images * channels, core.u, "a5");
  return ExciteSaved{*pooled, *hidden, *logits, *a3, *a5};
}

template <class Passes>
struct MBConvOperator {
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> forward(
      const Tensor& u, const Tensor& w, const OptionalTensor& gamma1, const OptionalTensor& beta1,
      const OptionalTensor& mean1, const OptionalTensor& var1, const Tensor& gamma2, const Tensor& beta2,
      const OptionalTensor& mean2, const OptionalTensor& var2, const OptionalTensor& w1, const OptionalTensor& b1,
      const OptionalTensor& w2, const OptionalTensor& b2, int64_t stride, const std::vector<int64_t>& padding,
      double eps1, double eps2, int64_t activation, int64_t gate) {
    const MBConvForward r =
        Passes::forward(mbconv_core_of(u, w, gamma1, beta1, mean1, var1, gamma2, beta2, mean2, var2, w1, b1, w2, b2,
                                       stride, padding, eps1, eps2, activation, gate));
    const auto vector = [&](const Tensor& t) { return or_empty(t, u); };
    return {r.out,
            r.y,
            vector(r.mean1),
            vector(r.var1),
            vector(r.mean2),
            vector(r.var2),
            vector(r.pooled),
            vector(r.hidden),
            vector(r.logits),
            vector(r.a3),
            vector(r.a5)};
  }

  static std::tuple<Tensor, Tensor> inference(const Tensor& u, const Tensor& w, const OptionalTensor& gamma1,
                                              const OptionalTensor& beta1, const OptionalTensor& mean1,
                                              const OptionalTensor& var1, const Tensor& gamma2, const Tensor& beta2,
                                              const Tensor& mean2, const Tensor& var2, const OptionalTensor& w1,
                                              const OptionalTensor& b1, const OptionalTensor& w2,
                                              const OptionalTensor& b2, int64_t stride,
                                              const std::vector<int64_t>& padding, double eps1, double eps2,
                                              int64_t activation, int64_t gate, bool scaled) {
    STD_TORCH_CHECK(!gamma1 || mean1, "mean1: expected running statistics in inference");
    const MBConvInference r =
        Passes::inference(mbconv_core_of(u, w, gamma1, beta1, mean1, var1, gamma2, beta2, mean2, var2, w1, b1, w2, b2,
                                         stride, padding, eps1, eps2, activation, gate),
                          scaled);
    return {r.out, or_empty(r.scale, u)};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
      const Tensor& grad, const Tensor& u, const Tensor& y, const Tensor& w, const OptionalTensor& gamma1,
      const OptionalTensor& beta1, const OptionalTensor& mean1, const OptionalTensor& var1, const Tensor& gamma2,
      const Tensor& beta2, const Tensor& mean2, const Tensor& var2, const OptionalTensor& w1, const OptionalTensor& b1,
      const OptionalTensor& w2, const OptionalTensor& b2, const OptionalTensor& pooled, const OptionalTensor& hidden,
      const OptionalTensor& logits, const OptionalTensor& a3, const OptionalTensor& a5, bool training1, bool training2,
      int64_t stride, const std::vector<int64_t>& padding, double eps1, double eps2, int64_t activation, int64_t gate) {
    const MBConvCore core = mbconv_core_of(u, w, gamma1, beta1, mean1, var1, gamma2, beta2, mean2, var2, w1, b1, w2, b2,
                                           stride, padding, eps1, eps2, activation, gate);
    const std::optional<ExciteSaved> saved = excite_saved_of(core, pooled, hidden, logits, a3, a5);
    const MBConvBackward r = Passes::backward(core, grad, y, saved, training1, training2);
    const auto gradient = [&](const Tensor& t) { return or_empty(t, u); };
    return {r.du,
            r.dw,
            gradient(r.dgamma1),
            gradient(r.dbeta1),
            r.dgamma2,
            r.dbeta2,
            gradient(r.dw1),
            gradient(r.db1),
            gradient(r.dw2),
            gradient(r.db2)};
  }
};

}  // namespace effnet_kernels
