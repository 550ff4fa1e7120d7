// Sums over parts and images between the passes, per channel and in a fixed order, so that results do not depend on the
// number of threads. Rows are padded as passes.h has them; `dtype` is of the arrays: float32 or float64.
#pragma once

#include "common/cpu/passes.h"

namespace effnet_kernels::cpu {

// sums[g, :] = Σ of `size` consecutive rows, for every group g.
struct SumRowsParams {
  DType dtype;
  const void* rows;  // [groups · size, row]
  int64_t groups, size, row;
  void* sums;  // [groups, row]
};
void sum_rows(const SumRowsParams&);

// Mean and biased variance from the parts' means and M2, merged in float64 (Chan et al. 1979, 1.5b).
struct MergeStatisticsParams {
  DType dtype;
  const void *means, *m2s;  // [parts, row]
  const double* sizes;      // of the parts: how many values of a channel are in each
  int64_t parts, row;
  double *running_mean, *running_m2;  // [row], zeros
  void *mean, *var;                   // [row]
};
void merge_statistics(const MergeStatisticsParams&);

// dβ = Σ_n (factor · A2 + offset · A3) and dγ = Σ_n (factor · A4 + offset · A5), summed in float64, and their means over
// the `count` elements of a channel, which are zero where the statistics are constants (count 0).
struct BatchNormGradientParams {
  DType dtype;
  const void *slope, *slope_x;   // A2, A4: [images, row]
  const void* factor;            // [images, row], or null for 1
  const void *offset, *a3, *a5;  // [images, row], or null for 0
  int64_t images, row;
  double count;
  double *beta_sum, *gamma_sum;  // [row], zeros
  void *dbeta, *dgamma, *mean_dv, *mean_dv_x;
};
void batch_norm_gradient(const BatchNormGradientParams&);

}  // namespace effnet_kernels::cpu
