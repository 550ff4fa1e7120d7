// The middle of an MBConv block as a sequence of passes, those of docs/design.md: what the CPU's (cpu_passes.cpp) and the
// GPU's (cuda_passes.cpp) take and return. depthwise_conv_bn_act is the same sequence without BN1 and SE.
#pragma once

#include "common/checks.h"
#include "depthwise_conv_bn_act/shape.h"

namespace effnet_kernels {

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

// What the operators return, in their order; what does not apply is undefined.
struct MBConvForward {
  Tensor out, y, mean1, var1, mean2, var2, pooled, hidden, logits, a3, a5;

  static MBConvForward none() {
    const Tensor t;
    return {t, t, t, t, t, t, t, t, t, t, t};
  }
};

// Inference: z · scale in out and scale undefined, or, where the caller scales, z in out and the scale (N, C) beside it.
struct MBConvInference {
  Tensor out, scale;
};

// The vectors that SE saved.
struct ExciteSaved {
  Tensor pooled, hidden, logits, a3, a5;
};
struct MBConvBackward {
  Tensor du, dw, dgamma1, dbeta1, dgamma2, dbeta2, dw1, db1, dw2, db2;

  static MBConvBackward none() {
    const Tensor t;
    return {t, t, t, t, t, t, t, t, t, t};
  }
};

// A backend's sequences. In backward the statistics in the core are those of the forward call; training1 and training2
// say whether they came from the batch.
struct CpuPasses {
  static MBConvForward forward(const MBConvCore&);
  static MBConvInference inference(const MBConvCore&, bool scaled);
  static MBConvBackward backward(const MBConvCore& core, const Tensor& grad, const Tensor& y,
                                 const std::optional<ExciteSaved>& saved, bool training1, bool training2);
};
struct CudaPasses {
  static MBConvForward forward(const MBConvCore&);
  static MBConvInference inference(const MBConvCore&, bool scaled);
  static MBConvBackward backward(const MBConvCore& core, const Tensor& grad, const Tensor& y,
                                 const std::optional<ExciteSaved>& saved, bool training1, bool training2);
};

// The convolution's shape, checked.
inline DepthwiseShape depthwise_shape(const MBConvCore& core) {
  const Tensor &u = core.u, &w = core.w;
  check_activations(u, "u");
  STD_TORCH_CHECK(w.defined() && w.dim() == 4 && w.size(0) == u.size(1) && w.size(1) == 1 && w.size(2) == w.size(3),
                  "w: expected shape (", u.size(1), ", 1, K, K)");
  const int64_t k = w.size(2), stride = core.stride;
  STD_TORCH_CHECK(k == 3 || k == 5 || k == 7, "w: expected a kernel of 3, 5 or 7, got ", k);
  check_values(w, u.size(1) * k * k, u, "w");
  STD_TORCH_CHECK(stride == 1 || stride == 2, "stride: expected 1 or 2, got ", stride);
  STD_TORCH_CHECK(core.padding.size() == 4, "padding: expected (top, bottom, left, right)");
  for (const int64_t p : core.padding) STD_TORCH_CHECK(p >= 0 && p < k, "padding: expected 0 to ", k - 1, ", got ", p);
  const auto out_size = [&](int64_t size, int64_t before, int64_t after) {
    const int64_t padded = size + before + after;
    STD_TORCH_CHECK(padded >= k, "u: expected a padded size of at least ", k, ", got ", padded);
    return (padded - k) / stride + 1;
  };
  return {u.size(0),
          u.size(1),
          u.size(2),
          u.size(3),
          out_size(u.size(2), core.padding[0], core.padding[1]),
          out_size(u.size(3), core.padding[2], core.padding[3]),
          int(k),
          int(stride),
          int(core.padding[0]),
          int(core.padding[2])};
}

inline void check_depthwise_gradient(const Tensor& grad, const Tensor& y, const MBConvCore& core,
                                     const DepthwiseShape& shape, Layout layout) {
  STD_TORCH_CHECK(y.defined() && y.dim() == 4 && y.size(2) == shape.out_height && y.size(3) == shape.out_width &&
                      y.size(0) == shape.images && y.size(1) == shape.channels,
                  "y: expected the convolution's output shape");
  STD_TORCH_CHECK(y.scalar_type() == core.u.scalar_type(), "y: expected the dtype of the input");
  check_device(y, core.u, "y");
  check_dense_like(y, y, layout, "y");
  check_dense_like(grad, y, layout, "grad");
}

// BatchNorms and squeeze-and-excite, of the convolution's channels.
inline void check_parameters(const MBConvCore& core) {
  const Tensor& u = core.u;
  STD_TORCH_CHECK(core.w.defined() && core.w.dim() == 4, "w: expected shape (C, 1, K, K)");
  const int64_t channels = core.w.size(0);
  const auto check = [&](const BatchNormTensors& bn, const BatchNormNames& names) {
    check_batch_norm(bn.gamma, bn.beta, bn.mean, bn.var, channels, u, names);
  };
  if (core.bn1) check(*core.bn1, kBatchNorm1);
  check(core.bn2, kBatchNorm2);
  if (core.se) check_squeeze_excite(core.se->w1, core.se->b1, core.se->w2, core.se->b2, channels, u);
}

}  // namespace effnet_kernels
