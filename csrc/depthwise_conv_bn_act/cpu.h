// The two depthwise kernels on CPU. Arrays of channels, parts and sums are those of common/cpu/passes.h.
#pragma once

#include "common/cpu/passes.h"
#include "depthwise_conv_bn_act/shape.h"

namespace effnet_kernels::cpu {

// How the work is cut: image groups × strips of rows × blocks of channels (one channel in NCHW). It depends on the shape
// alone. The forward sums have one part per image and strip, the backward ones per group and strip.
struct DepthwiseUnits {
  int64_t images_per_group, groups, rows_per_strip, strips, blocks, block_channels;

  static constexpr int64_t kMaxBlockChannels = 256;

  int64_t group_parts() const { return groups * strips; }
  int64_t count() const { return group_parts() * blocks; }
};

// y = dwconv(a), a = act(BN1(x)) with a prologue and x without.
struct DepthwiseForwardParams {
  DType dtype;
  Layout layout;
  DepthwiseShape shape;
  DepthwiseUnits units;
  Activation activation;
  const void* x;
  const void* weight;  // A[taps, row()]
  bool prologue;
  Affine affine1;
  // Training: out is y, and the parts' statistics of y go to mean and m2 (unless null).
  // Inference: out is z = act(BN2(y)), and the parts' sums of z go to z_sum (unless null).
  // All A[images · strips, row()].
  bool inference;
  Affine affine2;
  void* out;
  void *mean, *m2, *z_sum;
};
DepthwiseUnits forward_units(const DepthwiseShape&, Layout);
void depthwise_forward(const DepthwiseForwardParams&);

// dy through act and BN2 (InputGradientParams); da = dwconvᵀ(dy); dW = corr(a, dy); with a prologue dx = da · act'(v1)
// with its sums dβ1 = Σ dx and dγ1 = Σ dx x̂, else dx = da. One read of grad, y and x, one write of dx.
struct DepthwiseBackwardParams {
  DType dtype;
  Layout layout;
  DepthwiseShape shape;
  DepthwiseUnits units;
  Activation activation;
  const void *grad, *x, *y;
  const void* weight;  // A[taps, row()]
  bool prologue;
  Affine affine1, affine2;
  Gradient gradient;
  void* dx;
  void* dweight;           // A[group_parts(), taps, row()]
  void *dbeta1, *dgamma1;  // A[group_parts(), row()], null without a prologue
};
DepthwiseUnits backward_units(const DepthwiseShape&, Layout);
void depthwise_backward(const DepthwiseBackwardParams&);

}  // namespace effnet_kernels::cpu
