// The passes of a whole MBConv block that hold a 1×1 convolution, on CPU and in channels_last. Chunks, groups and weights
// are those of pointwise_conv/cpu.h.
#pragma once

#include "common/cpu/passes.h"
#include "pointwise_conv/cpu.h"

namespace effnet_kernels::cpu {

// out = (act(BN2(y)) · scale[n, c]) · W3ᵀ: what is between the two is never in memory.
struct ProjectForwardParams {
  DType dtype;
  RowChunks chunks;
  Activation activation;
  int64_t channels, out_channels;
  const void* y;
  Affine affine2;
  const void* scale;   // A[N, padded channels], or null
  const void* weight;  // packed: [channels, out_channels]
  void* out;
};
void project_forward(const ProjectForwardParams&);

// g = grad · W3, written for the pass that follows; A1, A2 and A4 of (g, y) per part (BackwardSumsParams); per group,
// dW3 = gradᵀ · (act(BN2(y)) · scale), or its right factor.
struct ProjectBackwardParams {
  DType dtype;
  RowChunks chunks;
  Activation activation;
  int64_t channels, out_channels;
  const void *grad, *y;
  Affine affine2;
  const void* scale;   // A[N, padded channels], or null
  const void* weight;  // [out_channels, channels]
  bool packed;         // else the weight is as it lies, of whole vectors
  void* g;
  void *gz_sum, *slope_sum, *slope_x_sum;  // A[parts, padded channels]
  void* dweight;                           // A[groups, out_channels, padded channels], or null
  void* scaled;                            // A[rows, padded channels], or null
};
void project_backward(const ProjectBackwardParams&);

// du = scale1 · (dv1 − mean_dv − û · mean_dv_x), in memory only where it is asked for; dx = du · W1; per group,
// dW1ᵀ = xᵀ · du.
struct ExpandBackwardParams {
  DType dtype;
  RowChunks chunks;
  int64_t in_channels, channels;
  const void *dv, *u, *x;
  Affine affine1;
  const void *mean_dv, *mean_dv_x;  // A[padded channels]
  const void* weight;               // [channels, in_channels]
  bool packed;                      // else the weight is as it lies, of whole vectors
  void* dx;                         // or null
  void* dweight;                    // A[groups, in_channels, padded channels], or null
  void* du;                         // A[rows, padded channels], or null
};
void expand_backward(const ExpandBackwardParams&);

}  // namespace effnet_kernels::cpu
