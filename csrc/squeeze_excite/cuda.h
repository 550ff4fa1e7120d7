// The launches of squeeze_excite's kernels. No torch in it.
#pragma once

#include "batch_norm_act/plan.h"
#include "common/cuda/types.h"

namespace effnet_kernels::cuda {

// F3. Per part and channel, with v = bn(x): z = Σ act(v) and, unless null, a3 = Σ act'(v), a5 = Σ act'(v) x̂. Reads x.
struct PoolParams {
  DType dtype;
  StreamPlan plan;
  Activation activation;
  BatchNorm bn;
  const void* x;
  float *z, *a3, *a5;
};
cudaError_t launch_pool(const PoolParams&, cudaStream_t);

// The two layers, a few images to a block: w1 (S, C), b1 (S), w2 (C, S), b2 (C). z holds `chunks` rows of sums per image.
struct ExciteParams {
  int64_t images, channels, squeezed, chunks, pixels;
  Activation activation, gate;
  Parameter w1, b1, w2, b2;
  const float *z, *a3_parts, *a5_parts;  // the last two null where they are not wanted
  float *pooled, *hidden, *logits;       // (N, C), (N, S), (N, C); hidden and logits before their activations
  float *a3, *a5;                        // (N, C)
  float* scale;                          // (N, C): gate(logits)
};
cudaError_t launch_excite(const ExciteParams&, cudaStream_t);

// Backward of the two layers. gz holds `chunks` rows of Σ g z per image: ∂L/∂scale.
struct ExciteBackwardParams {
  int64_t images, channels, squeezed, chunks;
  Activation activation, gate;
  Parameter w1, w2;
  const float *pooled, *hidden, *logits, *gz;
  float *scale, *dlogits, *dpooled;  // (N, C)
  float *activated, *dhidden;        // (N, S)
  ParameterGradient dw1, db1, dw2, db2;
};
cudaError_t launch_excite_backward(const ExciteBackwardParams&, cudaStream_t);

}  // namespace effnet_kernels::cuda
