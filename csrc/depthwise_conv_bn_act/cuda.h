// The launches of the depthwise kernels. No torch in it.
#pragma once

#include "batch_norm_act/cuda.h"
#include "common/cuda/types.h"
#include "depthwise_conv_bn_act/plan.h"

namespace effnet_kernels::cuda {

// F2. y = dwconv(a) with a = act(bn1(x)), or a = x without prologue; out = y and, unless null, the moments of its parts;
// or, in inference, out = z = act(bn2(y)) and, unless null, per piece of an image z_sum = Σ z. Reads x, writes out.
struct DepthwiseForwardParams {
  DType dtype;
  DepthwisePlan plan;
  Activation activation;
  Parameter w;  // (C, 1, K, K)
  bool prologue, inference;
  BatchNorm bn1, bn2;
  const void* x;
  void* out;
  Moments moments;
  float* z_sum;
};
cudaError_t launch_depthwise_forward(const DepthwiseForwardParams&, cudaStream_t);

// B2. dy from (grad, y) by `gradient` through bn2, then da = dwconvᵀ(dy) and dW = corr(a, dy). dx = da act'(v1), times
// scale1 where bn1's statistics are constants, or da without prologue. Partial results per part: K² rows of dW and,
// with prologue, dβ1 = Σ dv1 and dγ1 = Σ dv1 x̂. Reads grad, y and x, writes dx.
struct DepthwiseBackwardParams {
  DType dtype;
  DepthwisePlan plan;
  Activation activation;
  Parameter w;
  bool prologue, constant1;
  BatchNorm bn1, bn2;
  Gradient gradient;
  const void *grad, *y, *x;
  void* dx;
  float* partial;
};
cudaError_t launch_depthwise_backward(const DepthwiseBackwardParams&, cudaStream_t);

// The sums of B2's partial results, and the means that B3 needs (0 where bn1's statistics are constants).
struct DepthwiseSumParams {
  int64_t parts, channels, count;  // count: elements of x per channel
  int taps;
  bool prologue, training1;
  const float* partial;
  ParameterGradient dw, dgamma1, dbeta1;
  float *mean_dv, *mean_dv_x;
};
cudaError_t launch_depthwise_sum(const DepthwiseSumParams&, cudaStream_t);

}  // namespace effnet_kernels::cuda
