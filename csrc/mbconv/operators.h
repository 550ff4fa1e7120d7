// mbconv's operators over the CPU's sequence of passes: the arguments of csrc/ops.cpp to MBConvBlock and back.
#pragma once

#include "mbconv/passes.h"
#include "mbconv_core/operators.h"
#include "pointwise_conv/checks.h"

namespace effnet_kernels {

// Backward takes the statistics of the forward call in the core; training1 and training2 say whether they came from the
// batch.
struct CpuBlockPasses {
  static MBConvBlockForward forward(const MBConvBlock&);
  static MBConvBlockBackward backward(const MBConvBlock& block, const Tensor& grad, const Tensor& y,
                                      const std::optional<ExciteSaved>& saved, bool training1, bool training2,
                                      const MBConvNeeds& needs);
};

struct MBConvBlockOperator {
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
  forward(const Tensor& x, const OptionalTensor& w_expand, const OptionalTensor& gamma1, const OptionalTensor& beta1,
          const OptionalTensor& mean1, const OptionalTensor& var1, const Tensor& w, const Tensor& gamma2,
          const Tensor& beta2, const OptionalTensor& mean2, const OptionalTensor& var2, const OptionalTensor& w1,
          const OptionalTensor& b1, const OptionalTensor& w2, const OptionalTensor& b2, const Tensor& w_project,
          int64_t stride, const std::vector<int64_t>& padding, double eps1, double eps2, int64_t activation,
          int64_t gate) {
    const MBConvBlock block = checked({x, w_expand,
                                       mbconv_core_of(x, w, gamma1, beta1, mean1, var1, gamma2, beta2, mean2, var2, w1,
                                                      b1, w2, b2, stride, padding, eps1, eps2, activation, gate),
                                       w_project});
    const MBConvBlockForward r = CpuBlockPasses::forward(block);
    const MBConvForward& m = r.middle;
    const auto given = [&](const Tensor& t) { return or_empty(t, x); };
    return {r.out,           given(r.u),      m.y,           given(m.mean1),
            given(m.var1),   given(m.mean2),  given(m.var2), given(m.pooled),
            given(m.hidden), given(m.logits), given(m.a3),   given(m.a5)};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
  backward(const Tensor& grad, const Tensor& x, const Tensor& u, const Tensor& y, const OptionalTensor& w_expand,
           const OptionalTensor& gamma1, const OptionalTensor& beta1, const OptionalTensor& mean1,
           const OptionalTensor& var1, const Tensor& w, const Tensor& gamma2, const Tensor& beta2, const Tensor& mean2,
           const Tensor& var2, const OptionalTensor& w1, const OptionalTensor& b1, const OptionalTensor& w2,
           const OptionalTensor& b2, const Tensor& w_project, const OptionalTensor& pooled,
           const OptionalTensor& hidden, const OptionalTensor& logits, const OptionalTensor& a3,
           const OptionalTensor& a5, bool training1, bool training2, int64_t stride,
           const std::vector<int64_t>& padding, double eps1, double eps2, int64_t activation, int64_t gate,
           bool needs_dx, bool needs_dw_expand, bool needs_dw_project) {
    const MBConvBlock block =
        checked({x, w_expand,
                 mbconv_core_of(w_expand ? u : x, w, gamma1, beta1, mean1, var1, gamma2, beta2, mean2, var2, w1, b1, w2,
                                b2, stride, padding, eps1, eps2, activation, gate),
                 w_project});
    check_channels_last(grad, x, "grad");
    check_channels_last(block.core.u, x, "u");
    check_channels_last(y, x, "y");
    const DepthwiseShape shape = depthwise_shape(block.core);
    check_depthwise_gradient(y, y, block.core, shape, Layout::nhwc);
    STD_TORCH_CHECK(
        block.core.u.size(0) == x.size(0) && block.core.u.size(2) == x.size(2) && block.core.u.size(3) == x.size(3),
        "u: expected the expanded shape of x");
    STD_TORCH_CHECK(grad.size(0) == shape.images && grad.size(1) == w_project.size(0) &&
                        grad.size(2) == shape.out_height && grad.size(3) == shape.out_width,
                    "grad: expected the output's shape");
    const std::optional<ExciteSaved> saved = excite_saved_of(block.core, pooled, hidden, logits, a3, a5);
    const MBConvBlockBackward r = CpuBlockPasses::backward(block, grad, y, saved, training1, training2,
                                                           {needs_dx, needs_dw_expand, needs_dw_project});
    const MBConvBackward& m = r.middle;
    const auto gradient = [&](const Tensor& t) { return or_empty(t, x); };
    return {gradient(r.dx),
            gradient(r.dw_expand),
            gradient(m.dgamma1),
            gradient(m.dbeta1),
            m.dw,
            m.dgamma2,
            m.dbeta2,
            gradient(m.dw1),
            gradient(m.db1),
            gradient(m.dw2),
            gradient(m.db2),
            gradient(r.dw_project)};
  }

 private:
  static MBConvBlock checked(MBConvBlock block) {
    check_activations(block.x, "x");
    check_channels_last(block.x, block.x, "x");
    STD_TORCH_CHECK(block.w_expand.has_value() == block.core.bn1.has_value(),
                    "w_expand, gamma1: expected both or neither");
    if (block.w_expand) {
      check_pointwise_weight(*block.w_expand, block.x.size(1), block.x, "w_expand");
      STD_TORCH_CHECK(block.w_expand->size(0) == block.core.w.size(0), "w: expected the channels of w_expand");
    }
    check_pointwise_weight(block.w_project, block.core.w.size(0), block.x, "w_project");
    return block;
  }
};

}  // namespace effnet_kernels
