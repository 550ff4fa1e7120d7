// Combining values over the threads of a block, in a fixed order.
#pragma once

#include "batch_norm_act/plan.h"
#include "common/cuda/launch.h"
#include "common/cuda/vec.cuh"

namespace effnet_kernels::cuda {

struct Add {
  template <int N>
  EK_DEVICE void operator()(float (&a)[N], const float (&b)[N]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) a[i] += b[i];
  }
};

// {count, mean…, M2…} of two sets become those of their union (Chan, Golub and LeVeque 1979, eq. 1.5b).
struct MergeMoments {
  template <int N>
  EK_DEVICE void operator()(float (&a)[N], const float (&b)[N]) const {
    constexpr int kChannels = (N - 1) / 2;
    const float count = a[0] + b[0];
    const float weight = count > 0.0f ? b[0] / count : 0.0f;
#pragma unroll
    for (int i = 1; i <= kChannels; ++i) {
      const float delta = b[i] - a[i];
      a[i] = fmaf(delta, weight, a[i]);
      a[kChannels + i] += b[kChannels + i] + delta * delta * (a[0] * weight);
    }
    a[0] = count;
  }
};

// Bytes of shared memory that `reduce` uses for N values.
EK_HOST_DEVICE constexpr int reduce_bytes(int values, int threads) { return values * threads * int(sizeof(float)); }

// Combines `values` over the `count` threads whose index modulo stride · count differs by multiples of stride; stride
// and count are powers of two. Every thread of the block calls it; the result is valid in the first `stride` threads of
// every stride · count. Within a warp by shuffles, then across warps through `scratch` (reduce_bytes).
template <int N, class Combine>
EK_DEVICE void reduce(float (&values)[N], int stride, int count, float* scratch, Combine combine) {
  constexpr int kWarp = 32;
  const int span = stride * count, thread = int(threadIdx.x), threads = int(blockDim.x);
  for (int offset = stride; offset < kWarp && offset < span; offset *= 2) {
    float other[N];
#pragma unroll
    for (int i = 0; i < N; ++i) other[i] = __shfl_xor_sync(0xffffffffu, values[i], offset);
    combine(values, other);
  }
  if (span <= kWarp) return;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) store_shared(scratch + i * threads + thread, values[i]);
  __syncthreads();
  if (thread % span >= stride) return;
  const int step = stride < kWarp ? kWarp : stride;
  for (int from = thread + step; from < thread - thread % span + span; from += step) {
    float other[N];
#pragma unroll
    for (int i = 0; i < N; ++i) other[i] = load_shared(scratch + i * threads + from);
    combine(values, other);
  }
}

// The shape of the kernels that add up parts: 32 channels by 8 rows of parts.
inline constexpr int kMergeChannels = 32, kMergeRows = 8;

inline Grid merge_grid(int64_t channels, int bytes_per_thread) {
  constexpr int kThreads = kMergeChannels * kMergeRows;
  return {ceil_div(channels, kMergeChannels), kThreads, kThreads * bytes_per_thread};
}

}  // namespace effnet_kernels::cuda
