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
  Table<kConstants> table{static_cast<float*>(dynamic_shared())};
  walk.each_channel([&](int i, int64_t channel) {
    const BatchNormConstants bn = constants_of(p.bn, channel);
    table.set(kMean, i, bn.mean);
    table.set(kRstd, i, bn.rstd);
    table.set(kScale, i, bn.scale);
    table.set(kBeta, i, bn.beta);
  });
  __syncthreads();
  float z_sum[kN] = {}, a3[kN] = {}, a5[kN] = {};
  walk.each_vector([&](auto at, Lanes lanes) {
    const Vec<T> x = load(walk.in(p.x, at), lanes);
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

// A block takes a few images, so that the weights are read once for all of them.
inline constexpr int kExciteThreads = 256, kWarp = 32, kExciteImages = 4;

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
static __global__ void __launch_bounds__(kExciteThreads, 2) excite_kernel(ExciteParams p) {
  constexpr int kRows = 4;  // of w1, for each value of pooled that a warp reads
  const int64_t first = int64_t(blockIdx.x) * kExciteImages;
  const int images = p.images - first < kExciteImages ? int(p.images - first) : kExciteImages;
  const int thread = int(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  for (int n = 0; n < images; ++n) {
    const int64_t image = first + n, row = image * p.channels;
    for (int64_t c = thread; c < p.channels; c += kExciteThreads) {
      store_one(p.pooled + row + c, sum_of_chunks(p.z, image, p.chunks, p.channels, c) / float(p.pixels));
      if (p.a3_parts == nullptr) continue;
      store_one(p.a3 + row + c, sum_of_chunks(p.a3_parts, image, p.chunks, p.channels, c));
      store_one(p.a5 + row + c, sum_of_chunks(p.a5_parts, image, p.chunks, p.channels, c));
    }
  }
  __syncthreads();
  for (int64_t i0 = warp * kRows; i0 < p.squeezed; i0 += kExciteThreads / kWarp * kRows) {
    float sums[kRows * kExciteImages] = {};
    for (int64_t c = lane; c < p.channels; c += kWarp) {
      float w[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) w[i] = i0 + i < p.squeezed ? read(p.w1, (i0 + i) * p.channels + c) : 0.0f;
#pragma unroll
      for (int n = 0; n < kExciteImages; ++n) {
        const float pooled = n < images ? load_one(p.pooled + (first + n) * p.channels + c) : 0.0f;
#pragma unroll
        for (int i = 0; i < kRows; ++i) sums[i * kExciteImages + n] = fmaf(w[i], pooled, sums[i * kExciteImages + n]);
      }
    }
    reduce(sums, 1, kWarp, nullptr, Add{});
    if (lane > 0) continue;
#pragma unroll
    for (int k = 0; k < kRows * kExciteImages; ++k) {
      const int64_t i = i0 + k / kExciteImages, n = k % kExciteImages;
      if (i < p.squeezed && n < images) store_one(p.hidden + (first + n) * p.squeezed + i, sums[k] + read(p.b1, i));
    }
  }
  __syncthreads();
  // kExciteImages rows of kExciteThreads values.
  float* const activated = static_cast<float*>(dynamic_shared());
  for (int64_t c0 = 0; c0 < p.channels; c0 += kExciteThreads) {
    const int64_t c = c0 + thread;
    const float bias = c < p.channels ? read(p.b2, c) : 0.0f;
    float logits[kExciteImages] = {bias, bias, bias, bias};
    static_assert(kExciteImages == 4);
    for (int64_t i0 = 0; i0 < p.squeezed; i0 += kExciteThreads) {
      const int count = p.squeezed - i0 < kExciteThreads ? int(p.squeezed - i0) : kExciteThreads;
      __syncthreads();
      for (int n = 0; n < kExciteImages && thread < count; ++n) {
        const float hidden = n < images ? load_one(p.hidden + (first + n) * p.squeezed + i0 + thread) : 0.0f;
        store_shared(activated + thread * kExciteImages + n, derive(p.activation, hidden).value.value);
      }
      __syncthreads();
      if (c >= p.channels) continue;
      for (int i = 0; i < count; ++i) {
        const float w = read(p.w2, c * p.squeezed + i0 + i);
        const float4 a = load_shared(reinterpret_cast<const float4*>(activated) + i);
        const float values[kExciteImages] = {a.x, a.y, a.z, a.w};
#pragma unroll
        for (int n = 0; n < kExciteImages; ++n) logits[n] = fmaf(w, values[n], logits[n]);
      }
    }
    if (c >= p.channels) continue;
#pragma unroll
    for (int n = 0; n < kExciteImages; ++n) {
      if (n >= images) continue;
      const int64_t at = (first + n) * p.channels + c;
      store_one(p.logits + at, logits[n]);
      store_one(p.scale + at, derive(p.gate, logits[n]).value.value);
    }
  }
}

static __global__ void __launch_bounds__(kExciteThreads, 4) excite_backward_kernel(ExciteBackwardParams p) {
  constexpr int kWarps = kExciteThreads / kWarp;
  const int64_t first = int64_t(blockIdx.x) * kExciteImages;
  const int images = p.images - first < kExciteImages ? int(p.images - first) : kExciteImages;
  const int thread = int(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  for (int n = 0; n < images; ++n) {
    const int64_t image = first + n, row = image * p.channels;
    for (int64_t c = thread; c < p.channels; c += kExciteThreads) {
      const auto gate = derive(p.gate, load_one(p.logits + row + c));
      store_one(p.scale + row + c, gate.value.value);
      const float dscale = sum_of_chunks(p.gz, image, p.chunks, p.channels, c);
      store_one(p.dlogits + row + c, dscale * gate.derivative.value);
    }
  }
  __syncthreads();
  float4* const shared = static_cast<float4*>(dynamic_shared());  // kExciteThreads values of kExciteImages images
  float* const scratch = reinterpret_cast<float*>(shared + kExciteThreads);
  for (int64_t i0 = 0; i0 < p.squeezed; i0 += kWarp) {
    const int64_t i = i0 + lane;
    float sums[kExciteImages] = {};
    for (int64_t c0 = 0; c0 < p.channels; c0 += kExciteThreads) {
      const int count = p.channels - c0 < kExciteThreads ? int(p.channels - c0) : kExciteThreads;
      __syncthreads();
      if (thread < count) {
        float values[kExciteImages];
#pragma unroll
        for (int n = 0; n < kExciteImages; ++n) {
          values[n] = n < images ? load_one(p.dlogits + (first + n) * p.channels + c0 + thread) : 0.0f;
        }
        store_shared(shared + thread, make_float4(values[0], values[1], values[2], values[3]));
      }
      __syncthreads();
      for (int c = warp; c < count && i < p.squeezed; c += kWarps) {
        const float w = read(p.w2, (c0 + c) * p.squeezed + i);
        const float4 d = load_shared(shared + c);
        const float values[kExciteImages] = {d.x, d.y, d.z, d.w};
#pragma unroll
        for (int n = 0; n < kExciteImages; ++n) sums[n] = fmaf(w, values[n], sums[n]);
      }
    }
    reduce(sums, kWarp, kWarps, scratch, Add{});
    if (warp > 0 || i >= p.squeezed) continue;
#pragma unroll
    for (int n = 0; n < kExciteImages; ++n) {
      if (n >= images) continue;
      const int64_t at = (first + n) * p.squeezed + i;
      const auto activation = derive(p.activation, load_one(p.hidden + at));
      store_one(p.activated + at, activation.value.value);
      store_one(p.dhidden + at, sums[n] * activation.derivative.value);
    }
  }
  for (int64_t c0 = 0; c0 < p.channels; c0 += kExciteThreads) {
    const int64_t c = c0 + thread;
    float sums[kExciteImages] = {};
    for (int64_t i0 = 0; i0 < p.squeezed; i0 += kExciteThreads) {
      const int count = p.squeezed - i0 < kExciteThreads ? int(p.squeezed - i0) : kExciteThreads;
      __syncthreads();
      if (thread < count) {
        float values[kExciteImages];
#pragma unroll
        for (int n = 0; n < kExciteImages; ++n) {
          values[n] = n < images ? load_one(p.dhidden + (first + n) * p.squeezed + i0 + thread) : 0.0f;
        }
        store_shared(shared + thread, make_float4(values[0], values[1], values[2], values[3]));
      }
      __syncthreads();
      for (int i = 0; i < count && c < p.channels; ++i) {
        const float w = read(p.w1, (i0 + i) * p.channels + c);
        const float4 d = load_shared(shared + i);
        const float values[kExciteImages] = {d.x, d.y, d.z, d.w};
#pragma unroll
        for (int n = 0; n < kExciteImages; ++n) sums[n] = fmaf(w, values[n], sums[n]);
      }
    }
#pragma unroll
    for (int n = 0; n < kExciteImages; ++n) {
      if (n < images && c < p.channels) store_one(p.dpooled + (first + n) * p.channels + c, sums[n]);
    }
  }
}

// dw1[i, c] = Σ_n dhidden[n, i] · pooled[n, c] and dw2[c, i] = Σ_n dlogits[n, c] · activated[n, i]: a block takes 256
// channels and 8 squeezed ones of one of the two, a thread one channel; each sums over the images in order. The blocks
// of the first squeezed channels also sum dlogits (db2), those of the first channels dhidden (db1).
inline constexpr int kGradientRows = 8, kGradientImages = kExciteThreads / kGradientRows;

static __global__ void __launch_bounds__(kExciteThreads, 4) excite_weight_gradient_kernel(ExciteBackwardParams p) {
  const int64_t tiles = ceil_div(p.channels, kExciteThreads), rows = ceil_div(p.squeezed, kGradientRows);
  const int64_t block = blockIdx.x, tile = block % tiles, row = block / tiles % rows;
  const bool second = block / tiles / rows == 1;
  const float* const left = second ? p.activated : p.dhidden;
  const float* const right = second ? p.dlogits : p.pooled;
  const int64_t c = tile * kExciteThreads + threadIdx.x, i0 = row * kGradientRows;
  const int thread = int(threadIdx.x), own_row = thread % kGradientRows;
  float* const values = static_cast<float*>(dynamic_shared());  // kGradientImages × kGradientRows of left
  float sums[kGradientRows] = {}, right_sum = 0.0f, left_sum = 0.0f;
  for (int64_t n0 = 0; n0 < p.images; n0 += kGradientImages) {
    const int count = p.images - n0 < kGradientImages ? int(p.images - n0) : kGradientImages;
    const int64_t n = n0 + thread / kGradientRows;
    const bool exists = n < p.images && i0 + own_row < p.squeezed;
    __syncthreads();
    store_shared(values + thread, exists ? load_one(left + n * p.squeezed + i0 + own_row) : 0.0f);
    __syncthreads();
    for (int k = 0; k < count; ++k) {
      const float factor = c < p.channels ? load_one(right + (n0 + k) * p.channels + c) : 0.0f;
      right_sum += factor;
      if (thread < kGradientRows) left_sum += load_shared(values + k * kGradientRows + thread);
#pragma unroll
      for (int q = 0; q < kGradientRows / 4; ++q) {
        const float4 l = load_shared(reinterpret_cast<const float4*>(values) + k * (kGradientRows / 4) + q);
        sums[4 * q] = fmaf(l.x, factor, sums[4 * q]);
        sums[4 * q + 1] = fmaf(l.y, factor, sums[4 * q + 1]);
        sums[4 * q + 2] = fmaf(l.z, factor, sums[4 * q + 2]);
        sums[4 * q + 3] = fmaf(l.w, factor, sums[4 * q + 3]);
      }
    }
  }
  if (!second && tile == 0 && thread < kGradientRows && i0 + thread < p.squeezed) write(p.db1, i0 + thread, left_sum);
  if (c >= p.channels) return;
  if (second && row == 0) write(p.db2, c, right_sum);
#pragma unroll
  for (int k = 0; k < kGradientRows; ++k) {
    const int64_t i = i0 + k;
    if (i >= p.squeezed) continue;
    if (second) {
      write(p.dw2, c * p.squeezed + i, sums[k]);
    } else {
      write(p.dw1, i * p.channels + c, sums[k]);
    }
  }
}

}  // namespace effnet_kernels::cuda
