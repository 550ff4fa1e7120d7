// The launches of batch_norm_act's kernels, which are the streaming passes of every operator. No torch in it.
//
// Partial results have one row per part of the plan; `reduce_…` and `merge_…` add the rows in a fixed order.
#pragma once

#include "batch_norm_act/plan.h"
#include "common/cuda/types.h"

namespace effnet_kernels::cuda {

// Partial statistics: count[part], mean[part, c], m2[part, c] = Σ (x − mean)².
struct Moments {
  float *count, *mean, *m2;
};

// F1. Reads x.
struct StatisticsParams {
  DType dtype;
  StreamPlan plan;
  const void* x;
  Moments moments;
};
cudaError_t launch_statistics(const StatisticsParams&, cudaStream_t);

// The parts' moments to mean[c] and the biased var[c].
struct MergeParams {
  int64_t parts, channels;
  Moments moments;
  float *mean, *var;
};
cudaError_t launch_merge_statistics(const MergeParams&, cudaStream_t);

// F4. out = act(bn(x)) · factor + residual. factor[n, c] (or factor[n] where by_image) and residual may be null. Reads x
// and residual, writes out.
struct NormalizeParams {
  DType dtype;
  StreamPlan plan;
  Activation activation;
  BatchNorm bn;
  const void* x;
  Parameter factor;
  bool factor_by_image;
  const void* residual;
  void* out;
};
cudaError_t launch_normalize(const NormalizeParams&, cudaStream_t);

// B1. Per part and channel, with v = bn(x): gz = A1 = Σ g act(v), slope = A2 = Σ g act'(v), slope_x = A4 = Σ g act'(v) x̂;
// the first, or the last two, may be null. Reads grad and x.
struct BackwardSumsParams {
  DType dtype;
  StreamPlan plan;
  Activation activation;
  BatchNorm bn;
  const void *grad, *x;
  float *gz, *slope, *slope_x;
};
cudaError_t launch_backward_sums(const BackwardSumsParams&, cudaStream_t);

// dβ = Σ_n (factor · A2 + offset · A3), dγ = Σ_n (factor · A4 + offset · A5) from B1's parts; the means over the M
// elements of a channel, or 0 where the statistics are constants. offset[n, c] is divided by `pixels` here.
struct BatchNormGradientParams {
  int64_t images, chunks, channels, pixels;
  bool training;
  const float *slope, *slope_x;
  Parameter factor;
  bool factor_by_image;
  const float *offset, *a3, *a5;  // null without SE
  ParameterGradient dgamma, dbeta;
  float *mean_dv, *mean_dv_x;
};
cudaError_t launch_batch_norm_gradient(const BatchNormGradientParams&, cudaStream_t);

// What turns g into dv and dx: dz = g · factor + offset / pixels; dv = dz · act'(v); dx = scale · (dv − mean_dv − x̂ ·
// mean_dv_x).
struct Gradient {
  Parameter factor;
  bool factor_by_image;
  const float* offset;  // [n, c] or null
  const float *mean_dv, *mean_dv_x;
};

// B3. Reads grad and x, writes dx, which may be grad. x may be null where neither act' nor bn needs it.
struct InputGradientParams {
  DType dtype;
  StreamPlan plan;
  Activation activation;
  BatchNorm bn;
  Gradient gradient;
  const void *grad, *x;
  void* dx;
};
cudaError_t launch_input_gradient(const InputGradientParams&, cudaStream_t);

// running ← (1 − momentum) · running + momentum · batch, with the unbiased variance.
struct RunningStatsParams {
  int64_t channels, count;
  ParameterGradient running_mean, running_var;
  Parameter mean, var;
  float momentum;
};
cudaError_t launch_update_running_stats(const RunningStatsParams&, cudaStream_t);

}  // namespace effnet_kernels::cuda
