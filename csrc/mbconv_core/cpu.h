// The middle of an MBConv block on CPU, as the sequence of passes of docs/design.md. depthwise_conv_bn_act is the same
// sequence without BN1 and SE.
#pragma once

#include "common/tensor.h"

namespace effnet_kernels::cpu {

// A BatchNorm's tensors; mean and var absent where they are to be taken from the batch.
struct BatchNormTensors {
  Tensor gamma, beta;
  OptionalTensor mean, var;
  double eps;
};

struct ExciteTensors {
  Tensor w1, b1, w2, b2;
};

struct MBConvCore {
  Tensor u, w;
  std::optional<BatchNormTensors> bn1;
  BatchNormTensors bn2;
  std::optional<ExciteTensors> se;
  int64_t stride;
  std::vector<int64_t> padding;  // top, bottom, left, right
  Activation activation, gate;
};

// What the operators return, in their order; what does not apply is empty.
struct MBConvForward {
  Tensor out, y, mean1, var1, mean2, var2, pooled, hidden, logits, a3, a5;
};
MBConvForward mbconv_forward(const MBConvCore&);
Tensor mbconv_inference(const MBConvCore&);

// The vectors that SE saved.
struct ExciteSaved {
  Tensor pooled, hidden, logits, a3, a5;
};
struct MBConvBackward {
  Tensor du, dw, dgamma1, dbeta1, dgamma2, dbeta2, dw1, db1, dw2, db2;
};
// The statistics in core are those of the forward call; training1 and training2 say whether they came from the batch.
MBConvBackward mbconv_backward(const MBConvCore& core, const Tensor& grad, const Tensor& y,
                               const std::optional<ExciteSaved>& saved, bool training1, bool training2);

}  // namespace effnet_kernels::cpu
