// squeeze_excite's kernels: the pooling pass, and the two small layers forward and backward. The scaling pass and its
// gradient are batch_norm_act's normalize, backward_sums and input_gradient.
#pragma once

#include "common/cuda/activation.cuh"
#include "common/cuda/batch_norm.cuh"
#include "common/cuda/launch.h"
#include "common/cuda/reduce.cuh"
#include "common/cuda/stream.cuh"
#include "squeeze_excite/cuda.h"

namespace effnet_kernels::cuda {

template <class T, Layout layout>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks) pool_kernel(PoolParams p) {
  enum { kMean, kRstd, kScale, kBeta, kConstants };
  using W = Walk<T, layout>;
  constexpr int kN = W::kChannels;
  const W walk(p.plan);
  Table<kConstants> table{static_cast<float*>(dynamic_shared()), p.plan.width(kVector<T>)};
  walk.each_channel([&](int i, int64_t channel) {
    const BatchNormConstants bn = constants_of(p.bn, channel);
    table.set(kMean, i, bn.mean);
    table.set(kRstd, i, bn.rstd);
    table.set(kScale, i, bn.scale);
    table.set(kBeta, i, bn.beta);
  });
  __syncthreads();
  float z_sum[kN] = {}, a3[kN] = {}, a5[kN] = {};
  walk.each_vector([&](int64_t at, Lanes lanes) {
    const Vec<T> x = load(static_cast<const T*>(p.x) + at, lanes);
#pragma unroll
    for (int q = 0; q < x.quads; ++q) {
      float value[4], z[4], slope[4];
      x.get(q, value);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int i = 4 * q + j;
        z[j] = fmaf(value[j] - table.get(walk, kMean, i), table.get(walk, kScale, i), table.get(walk, kBeta, i));
      }
      derive_all(p.activation, z, slope);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (kN == 1 && !lanes.contains(4 * q + j)) continue;
        const int i = kN > 1 ? 4 * q + j : 0;
        const float x_hat = (value[j] - table.get(walk, kMean, 4 * q + j)) * table.get(walk, kRstd, 4 * q + j);
        z_sum[i] += z[j];
        a3[i] += slope[j];
        a5[i] = fmaf(slope[j], x_hat, a5[i]);
      }
    }
  });
  const auto sum = [&](float (&values)[kN], float* parts) {
    if (parts == nullptr) return;
    reduce(values, walk.stride(), walk.count(), table.after(), Add{});
    if (!walk.leader()) return;
    walk.each_own_channel(
        [&](int i, int64_t channel) { store_one(parts + walk.part * p.plan.channels + channel, values[i]); });
  };
  sum(z_sum, p.z);
  sum(a3, p.a3);
  sum(a5, p.a5);
}

inline constexpr int kExciteThreads = 256, kWarp = 32;

// Σ over an image's rows of partial sums.
EK_DEVICE float sum_of_chunks(const float* parts, int64_t image, int64_t chunks, int64_t channels, int64_t channel) {
  float sum = 0.0f;
  for (int64_t part = image * chunks; part < (image + 1) * chunks; ++part) {
    sum += load_one(parts + part * channels + channel);
  }
  return sum;
}

EK_DEVICE ValueAndDerivative<Scalar> derive(Activation activation, float v) {
  ValueAndDerivative<Scalar> result;
  dispatch_activation(activation,
                      [&](auto act) { result = activate_with_derivative<decltype(act)::value>(Scalar{v}); });
  return result;
}

// What one phase writes to global memory the next one reads, within the block.
static __global__ void __launch_bounds__(kExciteThreads) excite_kernel(ExciteParams p) {
  const int64_t image = blockIdx.x, row = image * p.channels, hidden_row = image * p.squeezed;
  const int thread = int(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  for (int64_t c = thread; c < p.channels; c += kExciteThreads) {
    store_one(p.pooled + row + c, sum_of_chunks(p.z, image, p.chunks, p.channels, c) / float(p.pixels));
    if (p.a3_parts == nullptr) continue;
    store_one(p.a3 + row + c, sum_of_chunks(p.a3_parts, image, p.chunks, p.channels, c));
    store_one(p.a5 + row + c, sum_of_chunks(p.a5_parts, image, p.chunks, p.channels, c));
  }
  __syncthreads();
  for (int64_t i = warp; i < p.squeezed; i += kExciteThreads / kWarp) {
    float sum[1] = {};
    for (int64_t c = lane; c < p.channels; c += kWarp) {
      sum[0] = fmaf(read(p.w1, i * p.channels + c), load_one(p.pooled + row + c), sum[0]);
    }
    reduce(sum, 1, kWarp, nullptr, Add{});
    if (lane == 0) store_one(p.hidden + hidden_row + i, sum[0] + read(p.b1, i));
  }
  __syncthreads();
  float* const activated = static_cast<float*>(dynamic_shared());
  for (int64_t c0 = 0; c0 < p.channels; c0 += kExciteThreads) {
    const int64_t c = c0 + thread;
    float logit = c < p.channels ? read(p.b2, c) : 0.0f;
    for (int64_t i0 = 0; i0 < p.squeezed; i0 += kExciteThreads) {
      const int count = p.squeezed - i0 < kExciteThreads ? int(p.squeezed - i0) : kExciteThreads;
      __syncthreads();
      if (thread < count) {
        const float hidden = load_one(p.hidden + hidden_row + i0 + thread);
        store_shared(activated + thread, derive(p.activation, hidden).value.value);
      }
      __syncthreads();
      if (c >= p.channels) continue;
      for (int i = 0; i < count; ++i) {
        logit = fmaf(read(p.w2, c * p.squeezed + i0 + i), load_shared(activated + i), logit);
      }
    }
    if (c >= p.channels) continue;
    store_one(p.logits + row + c, logit);
    store_one(p.scale + row + c, derive(p.gate, logit).value.value);
  }
}

static __global__ void __launch_bounds__(kExciteThreads) excite_backward_kernel(ExciteBackwardParams p) {
  const int64_t image = blockIdx.x, row = image * p.channels, hidden_row = image * p.squeezed;
  const int thread = int(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  constexpr int kWarps = kExciteThreads / kWarp;
  for (int64_t c = thread; c < p.channels; c += kExciteThreads) {
    const auto gate = derive(p.gate, load_one(p.logits + row + c));
    store_one(p.scale + row + c, gate.value.value);
    const float dscale = sum_of_chunks(p.gz, image, p.chunks, p.channels, c);
    store_one(p.dlogits + row + c, dscale * gate.derivative.value);
  }
  __syncthreads();
  for (int64_t i0 = 0; i0 < p.squeezed; i0 += kWarp) {
    const int64_t i = i0 + lane;
    float sum[1] = {};
    if (i < p.squeezed) {
      for (int64_t c = warp; c < p.channels; c += kWarps) {
        sum[0] = fmaf(read(p.w2, c * p.squeezed + i), load_one(p.dlogits + row + c), sum[0]);
      }
    }
    reduce(sum, kWarp, kWarps, static_cast<float*>(dynamic_shared()), Add{});
    if (warp > 0 || i >= p.squeezed) continue;
    const auto activation = derive(p.activation, load_one(p.hidden + hidden_row + i));
    store_one(p.activated + hidden_row + i, activation.value.value);
    store_one(p.dhidden + hidden_row + i, sum[0] * activation.derivative.value);
  }
  __syncthreads();
  for (int64_t c = thread; c < p.channels; c += kExciteThreads) {
    float sum = 0.0f;
    for (int64_t i = 0; i < p.squeezed; ++i) {
      sum = fmaf(read(p.w1, i * p.channels + c), load_one(p.dhidden + hidden_row + i), sum);
    }
    store_one(p.dpooled + row + c, sum);
  }
}

// One thread per element of dw1, dw2, db1 and db2; each sums over the images in order.
static __global__ void __launch_bounds__(kExciteThreads) excite_weight_gradient_kernel(ExciteBackwardParams p) {
  const int64_t size = p.channels * p.squeezed;
  int64_t at = int64_t(blockIdx.x) * kExciteThreads + threadIdx.x;
  // Σ_n left[n, l] · right[n, r]; without right Σ_n left[n, l].
  const auto product = [&](const float* left, int64_t l, int64_t left_size, const float* right, int64_t r,
                           int64_t right_size) {
    float sum = 0.0f;
    for (int64_t n = 0; n < p.images; ++n) {
      const float factor = right == nullptr ? 1.0f : load_one(right + n * right_size + r);
      sum = fmaf(load_one(left + n * left_size + l), factor, sum);
    }
    return sum;
  };
  if (at < size) {
    write(p.dw1, at, product(p.dhidden, at / p.channels, p.squeezed, p.pooled, at % p.channels, p.channels));
    return;
  }
  at -= size;
  if (at < size) {
    write(p.dw2, at, product(p.dlogits, at / p.squeezed, p.channels, p.activated, at % p.squeezed, p.squeezed));
    return;
  }
  at -= size;
  if (at < p.channels) {
    write(p.db2, at, product(p.dlogits, at, p.channels, nullptr, 0, 0));
    return;
  }
  at -= p.channels;
  if (at < p.squeezed) write(p.db1, at, product(p.dhidden, at, p.squeezed, nullptr, 0, 0));
}

}  // namespace effnet_kernels::cuda
