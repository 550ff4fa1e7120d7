// Every schema of the library, and nothing else: the table of contents. The mathematics is in docs/design.md.
//
// Conventions: activations are (N, C, H, W), dense in NCHW or channels_last; `padding` is (top, bottom, left, right);
// `activation` and `gate` are codes of common/activation.h. A statistic (`mean`, `var`) that is None is computed from
// the batch and returned; one that is given is a constant (inference). What an operator has no use for is returned empty.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(effnet_kernels, m) {
  m.def("update_running_stats_(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor var, "
        "SymInt count, float momentum) -> ()");

  m.def("release_cached_memory() -> int");

  m.def("batch_norm_act(Tensor x, Tensor gamma, Tensor beta, Tensor? mean, Tensor? var, Tensor? keep, "
        "Tensor? residual, float eps, int activation) -> (Tensor out, Tensor mean, Tensor var)");
  m.def("batch_norm_act_backward(Tensor grad, Tensor x, Tensor gamma, Tensor beta, Tensor mean, Tensor var, "
        "Tensor? keep, bool training, float eps, int activation) -> (Tensor dx, Tensor dgamma, Tensor dbeta)");

  m.def("depthwise_conv_bn_act(Tensor x, Tensor w, Tensor gamma, Tensor beta, Tensor? mean, Tensor? var, "
        "int stride, SymInt[4] padding, float eps, int activation) -> (Tensor out, Tensor y, Tensor mean, Tensor var)");
  m.def("depthwise_conv_bn_act_inference(Tensor x, Tensor w, Tensor gamma, Tensor beta, Tensor mean, Tensor var, "
        "int stride, SymInt[4] padding, float eps, int activation) -> Tensor");
  m.def("depthwise_conv_bn_act_backward(Tensor grad, Tensor x, Tensor y, Tensor w, Tensor gamma, Tensor beta, "
        "Tensor mean, Tensor var, bool training, int stride, SymInt[4] padding, float eps, int activation) "
        "-> (Tensor dx, Tensor dw, Tensor dgamma, Tensor dbeta)");

  m.def("squeeze_excite(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, int activation, int gate) "
        "-> (Tensor out, Tensor pooled, Tensor hidden, Tensor logits)");
  m.def("squeeze_excite_backward(Tensor grad, Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor pooled, "
        "Tensor hidden, Tensor logits, int activation, int gate) "
        "-> (Tensor dx, Tensor dw1, Tensor db1, Tensor dw2, Tensor db2)");

  m.def("mbconv_core(Tensor u, Tensor w, Tensor? gamma1, Tensor? beta1, Tensor? mean1, Tensor? var1, Tensor gamma2, "
        "Tensor beta2, Tensor? mean2, Tensor? var2, Tensor? w1, Tensor? b1, Tensor? w2, Tensor? b2, int stride, "
        "SymInt[4] padding, float eps1, float eps2, int activation, int gate) "
        "-> (Tensor out, Tensor y, Tensor mean1, Tensor var1, Tensor mean2, Tensor var2, Tensor pooled, "
        "Tensor hidden, Tensor logits, Tensor a3, Tensor a5)");
  m.def("mbconv_core_inference(Tensor u, Tensor w, Tensor? gamma1, Tensor? beta1, Tensor? mean1, Tensor? var1, "
        "Tensor gamma2, Tensor beta2, Tensor mean2, Tensor var2, Tensor? w1, Tensor? b1, Tensor? w2, Tensor? b2, "
        "int stride, SymInt[4] padding, float eps1, float eps2, int activation, int gate, bool scaled) "
        "-> (Tensor out, Tensor scale)");
  m.def("mbconv_core_backward(Tensor grad, Tensor u, Tensor y, Tensor w, Tensor? gamma1, Tensor? beta1, "
        "Tensor? mean1, Tensor? var1, Tensor gamma2, Tensor beta2, Tensor mean2, Tensor var2, Tensor? w1, Tensor? b1, "
        "Tensor? w2, Tensor? b2, Tensor? pooled, Tensor? hidden, Tensor? logits, Tensor? a3, Tensor? a5, "
        "bool training1, bool training2, int stride, SymInt[4] padding, float eps1, float eps2, int activation, "
        "int gate) -> (Tensor du, Tensor dw, Tensor dgamma1, Tensor dbeta1, Tensor dgamma2, Tensor dbeta2, "
        "Tensor dw1, Tensor db1, Tensor dw2, Tensor db2)");

  // On CPU alone, in channels_last: elsewhere 1×1 convolutions are PyTorch's.
  m.def("pointwise_conv(Tensor x, Tensor w) -> Tensor");
  m.def("pointwise_conv_backward(Tensor grad, Tensor x, Tensor w, bool needs_dx, bool needs_dw) "
        "-> (Tensor dx, Tensor dw)");
  m.def("mbconv(Tensor x, Tensor? w_expand, Tensor? gamma1, Tensor? beta1, Tensor? mean1, Tensor? var1, Tensor w, "
        "Tensor gamma2, Tensor beta2, Tensor? mean2, Tensor? var2, Tensor? w1, Tensor? b1, Tensor? w2, Tensor? b2, "
        "Tensor w_project, int stride, SymInt[4] padding, float eps1, float eps2, int activation, int gate) "
        "-> (Tensor out, Tensor u, Tensor y, Tensor mean1, Tensor var1, Tensor mean2, Tensor var2, Tensor pooled, "
        "Tensor hidden, Tensor logits, Tensor a3, Tensor a5)");
  m.def("mbconv_backward(Tensor grad, Tensor x, Tensor u, Tensor y, Tensor? w_expand, Tensor? gamma1, Tensor? beta1, "
        "Tensor? mean1, Tensor? var1, Tensor w, Tensor gamma2, Tensor beta2, Tensor mean2, Tensor var2, Tensor? w1, "
        "Tensor? b1, Tensor? w2, Tensor? b2, Tensor w_project, Tensor? pooled, Tensor? hidden, Tensor? logits, "
        "Tensor? a3, Tensor? a5, bool training1, bool training2, int stride, SymInt[4] padding, float eps1, "
        "float eps2, int activation, int gate, bool needs_dx, bool needs_dw_expand, bool needs_dw_project) "
        "-> (Tensor dx, Tensor dw_expand, Tensor dgamma1, Tensor dbeta1, Tensor dw, Tensor dgamma2, Tensor dbeta2, "
        "Tensor dw1, Tensor db1, Tensor dw2, Tensor db2, Tensor dw_project)");

  // Inference on CPU over prepared weights: BatchNorm folded in, matrices packed for common/cpu/packed_matrix.h
  // (effnet_kernels/ops/prepared.py). Activations are channels_last, but for conv_inference's x.
  m.def("conv_inference(Tensor x, Tensor weights, Tensor? residual, int out_channels, int kernel_size, "
        "int stride, SymInt[4] padding, int activation, bool bfloat16_products) -> Tensor");
  m.def("mbconv_inference(Tensor x, Tensor weights, int channels, int out_channels, int squeezed, int kernel_size, "
        "int stride, SymInt[4] padding, int activation, int gate, bool expands, bool residual, "
        "bool bfloat16_products) -> Tensor");
  // Such layers one after the other, each a row of the plan (effnet_kernels/ops/prepared_network.py).
  m.def("network_inference(Tensor x, Tensor weights, Tensor plan, int classes) -> Tensor");
}
