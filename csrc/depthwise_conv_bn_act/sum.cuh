// The fixed-order sums of the weight gradient's and BN1's partial results.
#pragma once

#include "common/cuda/batch_norm.cuh"
#include "common/cuda/reduce.cuh"
#include "depthwise_conv_bn_act/cuda.h"

namespace effnet_kernels::cuda {

// One block per row of partial results and 32 channels.
static __global__ void __launch_bounds__(kMergeChannels* kMergeRows) depthwise_sum_kernel(DepthwiseSumParams p) {
  const int x = int(threadIdx.x) % kMergeChannels, y = int(threadIdx.x) / kMergeChannels;
  const int64_t rows = p.taps + (p.prologue ? 2 : 0), row = int64_t(blockIdx.x) % rows;
  const int64_t channel = int64_t(blockIdx.x) / rows * kMergeChannels + x;
  float sum[1] = {};
  if (channel < p.channels) {
    for (int64_t part = y; part < p.parts; part += kMergeRows) {
      sum[0] += load_one(p.partial + (part * rows + row) * p.channels + channel);
    }
  }
  reduce(sum, kMergeChannels, kMergeRows, static_cast<float*>(dynamic_shared()), Add{});
  if (y > 0 || channel >= p.channels) return;
  if (row < p.taps) {
    write(p.dw, channel * p.taps + row, sum[0]);
    return;
  }
  const float mean = p.training1 && p.count > 0 ? sum[0] / float(p.count) : 0.0f;
  if (row == p.taps) {
    write(p.dbeta1, channel, sum[0]);
    store_one(p.mean_dv + channel, mean);
  } else {
    write(p.dgamma1, channel, sum[0]);
    store_one(p.mean_dv_x + channel, mean);
  }
}

}  // namespace effnet_kernels::cuda
