// batch_norm_act's kernels: statistics, normalize, the sums of the backward pass, the input gradient. Every element of
// an activation tensor is read once and written at most once per launch.
#pragma once

#include "batch_norm_act/cuda.h"
#include "common/cuda/activation.cuh"
#include "common/cuda/batch_norm.cuh"
#include "common/cuda/launch.h"
#include "common/cuda/reduce.cuh"
#include "common/cuda/stream.cuh"

namespace effnet_kernels::cuda {

// Adds a vector to {count, mean…, M2…} of the channels that the thread sees.
template <class W, class T>
EK_DEVICE void add_moments(float (&moments)[1 + 2 * W::kChannels], const Vec<T>& vec, Lanes lanes) {
  constexpr int kN = W::kChannels;
  if constexpr (kN > 1) {
    moments[0] += 1.0f;
    const float weight = __fdividef(1.0f, moments[0]);
#pragma unroll
    for (int q = 0; q < Vec<T>::quads; ++q) {
      float x[4];
      vec.get(q, x);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float &mean = moments[1 + 4 * q + j], &m2 = moments[1 + kN + 4 * q + j];
        const float delta = x[j] - mean;
        mean = fmaf(delta, weight, mean);
        m2 = fmaf(delta, x[j] - mean, m2);
      }
    }
  } else {
    // The vector's own moments first, two-pass: its elements are of one channel.
    float x[Vec<T>::size];
#pragma unroll
    for (int q = 0; q < Vec<T>::quads; ++q) {
      float quad[4];
      vec.get(q, quad);
#pragma unroll
      for (int j = 0; j < 4; ++j) x[4 * q + j] = quad[j];
    }
    float set[3] = {lanes.whole ? float(Vec<T>::size) : float(lanes.last - lanes.first), 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < Vec<T>::size; ++i) set[1] += x[i];  // absent elements are 0
    set[1] = __fdividef(set[1], set[0]);
#pragma unroll
    for (int i = 0; i < Vec<T>::size; ++i) {
      const float delta = lanes.contains(i) ? x[i] - set[1] : 0.0f;
      set[2] = fmaf(delta, delta, set[2]);
    }
    MergeMoments{}(moments, set);
  }
}

template <class T, Layout layout>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks) statistics_kernel(StatisticsParams p) {
  using W = Walk<T, layout>;
  const W walk(p.plan);
  float moments[1 + 2 * W::kChannels] = {};
  walk.each_vector([&](int64_t at, Lanes lanes) { add_moments<W>(moments, load(walk.in(p.x, at), lanes), lanes); });
  reduce(moments, walk.stride(), walk.count(), static_cast<float*>(dynamic_shared()), MergeMoments{});
  if (!walk.leader()) return;
  walk.each_own_channel([&](int i, int64_t channel) {
    const int64_t at = walk.part * p.plan.channels + channel;
    if (channel == 0) store_one(p.moments.count + walk.part, moments[0]);
    store_one(p.moments.mean + at, moments[1 + i]);
    store_one(p.moments.m2 + at, moments[1 + W::kChannels + i]);
  });
}

static __global__ void __launch_bounds__(kMergeChannels* kMergeRows) merge_statistics_kernel(MergeParams p) {
  const int x = int(threadIdx.x) % kMergeChannels, y = int(threadIdx.x) / kMergeChannels;
  const int64_t channel = int64_t(blockIdx.x) * kMergeChannels + x;
  // float64: thousands of parts are added one after another.
  double count = 0.0, mean = 0.0, m2 = 0.0;
  const auto merge = [&](double other_count, double other_mean, double other_m2) {
    const double total = count + other_count;
    if (total == 0.0) return;
    const double delta = other_mean - mean, weight = other_count / total;
    mean += delta * weight;
    m2 += other_m2 + delta * delta * count * weight;
    count = total;
  };
  if (channel < p.channels) {
    for (int64_t part = y; part < p.parts; part += kMergeRows) {
      const int64_t at = part * p.channels + channel;
      merge(load_one(p.moments.count + part), load_one(p.moments.mean + at), load_one(p.moments.m2 + at));
    }
  }
  double* const rows = static_cast<double*>(dynamic_shared());
  constexpr int kThreads = kMergeChannels * kMergeRows;
  const double own[3] = {count, mean, m2};
  for (int i = 0; i < 3; ++i) store_shared(rows + i * kThreads + int(threadIdx.x), own[i]);
  __syncthreads();
  if (y > 0 || channel >= p.channels) return;
  for (int from = x + kMergeChannels; from < kThreads; from += kMergeChannels) {
    merge(load_shared(rows + from), load_shared(rows + kThreads + from), load_shared(rows + 2 * kThreads + from));
  }
  store_one(p.mean + channel, float(mean));
  store_one(p.var + channel, count > 0.0 ? float(m2 / count) : 0.0f);
}

template <class T, Layout layout>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks) normalize_kernel(NormalizeParams p) {
  enum { kMean, kScale, kBeta, kFactor, kConstants };
  const Walk<T, layout> walk(p.plan);
  Table<kConstants> table{static_cast<float*>(dynamic_shared())};
  walk.each_channel([&](int i, int64_t channel) {
    const BatchNormConstants bn = constants_of(p.bn, channel);
    table.set(kMean, i, bn.mean);
    table.set(kScale, i, bn.scale);
    table.set(kBeta, i, bn.beta);
    table.set(kFactor, i, factor_of(p.factor, p.factor_by_image, walk.image, p.plan.channels, channel));
  });
  __syncthreads();
  walk.each_vector([&](auto at, Lanes lanes) {
    Vec<T> vec = load(walk.in(p.x, at), lanes), residual{};
    if (p.residual != nullptr) residual = load(walk.in(p.residual, at), lanes);
#pragma unroll
    for (int q = 0; q < vec.quads; ++q) {
      float v[4], add[4];
      vec.get(q, v);
      residual.get(q, add);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int i = 4 * q + j;
        v[j] = fmaf(v[j] - table.get(walk, kMean, i), table.get(walk, kScale, i), table.get(walk, kBeta, i));
      }
      activate_all(p.activation, v);
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = fmaf(v[j], table.get(walk, kFactor, 4 * q + j), add[j]);
      vec.set(q, v);
    }
    store(walk.out(p.out, at), vec, lanes);
  });
}

template <class T, Layout layout>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks) backward_sums_kernel(BackwardSumsParams p) {
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
  float gz[kN] = {}, slope_sum[kN] = {}, slope_x[kN] = {};
  walk.each_vector([&](auto at, Lanes lanes) {
    const Vec<T> g = load(walk.in(p.grad, at), lanes);
    const Vec<T> x = load(walk.in(p.x, at), lanes);
#pragma unroll
    for (int q = 0; q < x.quads; ++q) {
      float grad[4], value[4], z[4], slope[4];
      x.get(q, value);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int i = 4 * q + j;
        z[j] = fmaf(value[j] - table.get(walk, kMean, i), table.get(walk, kScale, i), table.get(walk, kBeta, i));
      }
      derive_all(p.activation, z, slope);
      g.get(q, grad);  // 0 where there is no element, which adds nothing
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int i = kN > 1 ? 4 * q + j : 0;
        const float dv = grad[j] * slope[j];
        const float x_hat = (value[j] - table.get(walk, kMean, 4 * q + j)) * table.get(walk, kRstd, 4 * q + j);
        gz[i] = fmaf(grad[j], z[j], gz[i]);
        slope_sum[i] += dv;
        slope_x[i] = fmaf(dv, x_hat, slope_x[i]);
      }
    }
  });
  if (p.gz != nullptr) reduce(gz, walk.stride(), walk.count(), table.after(), Add{});
  if (p.slope != nullptr) {
    reduce(slope_sum, walk.stride(), walk.count(), table.after(), Add{});
    reduce(slope_x, walk.stride(), walk.count(), table.after(), Add{});
  }
  if (!walk.leader()) return;
  walk.each_own_channel([&](int i, int64_t channel) {
    const int64_t at = walk.part * p.plan.channels + channel;
    if (p.gz != nullptr) store_one(p.gz + at, gz[i]);
    if (p.slope == nullptr) return;
    store_one(p.slope + at, slope_sum[i]);
    store_one(p.slope_x + at, slope_x[i]);
  });
}

static __global__ void __launch_bounds__(kMergeChannels* kMergeRows)
    batch_norm_gradient_kernel(BatchNormGradientParams p) {
  const int x = int(threadIdx.x) % kMergeChannels, y = int(threadIdx.x) / kMergeChannels;
  const int64_t channel = int64_t(blockIdx.x) * kMergeChannels + x;
  float sums[2] = {};
  if (channel < p.channels) {
    for (int64_t image = y; image < p.images; image += kMergeRows) {
      float slope = 0.0f, slope_x = 0.0f;
      for (int64_t part = image * p.chunks; part < (image + 1) * p.chunks; ++part) {
        slope += load_one(p.slope + part * p.channels + channel);
        slope_x += load_one(p.slope_x + part * p.channels + channel);
      }
      const float factor = factor_of(p.factor, p.factor_by_image, image, p.channels, channel);
      sums[0] = fmaf(factor, slope, sums[0]);
      sums[1] = fmaf(factor, slope_x, sums[1]);
      if (p.offset == nullptr) continue;
      const int64_t at = image * p.channels + channel;
      const float offset = load_one(p.offset + at) / float(p.pixels);
      sums[0] = fmaf(offset, load_one(p.a3 + at), sums[0]);
      sums[1] = fmaf(offset, load_one(p.a5 + at), sums[1]);
    }
  }
  reduce(sums, kMergeChannels, kMergeRows, static_cast<float*>(dynamic_shared()), Add{});
  if (y > 0 || channel >= p.channels) return;
  write(p.dbeta, channel, sums[0]);
  write(p.dgamma, channel, sums[1]);
  const float count = float(p.images * p.pixels);
  const bool constant = !p.training || count == 0.0f;
  store_one(p.mean_dv + channel, constant ? 0.0f : sums[0] / count);
  store_one(p.mean_dv_x + channel, constant ? 0.0f : sums[1] / count);
}

template <class T, Layout layout>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks) input_gradient_kernel(InputGradientParams p) {
  enum { kMean, kRstd, kScale, kBeta, kFactor, kOffset, kMeanDv, kMeanDvX, kConstants };
  const Walk<T, layout> walk(p.plan);
  Table<kConstants> table{static_cast<float*>(dynamic_shared())};
  walk.each_channel([&](int i, int64_t channel) {
    const BatchNormConstants bn = constants_of(p.bn, channel);
    const Gradient& gradient = p.gradient;
    table.set(kMean, i, bn.mean);
    table.set(kRstd, i, bn.rstd);
    table.set(kScale, i, bn.scale);
    table.set(kBeta, i, bn.beta);
    const int64_t channels = p.plan.channels, at = walk.image * channels + channel;
    table.set(kFactor, i, factor_of(gradient.factor, gradient.factor_by_image, walk.image, channels, channel));
    table.set(kOffset, i, gradient.offset == nullptr ? 0.0f : load_one(gradient.offset + at) / float(p.plan.pixels));
    table.set(kMeanDv, i, gradient.mean_dv == nullptr ? 0.0f : load_one(gradient.mean_dv + channel));
    table.set(kMeanDvX, i, gradient.mean_dv_x == nullptr ? 0.0f : load_one(gradient.mean_dv_x + channel));
  });
  __syncthreads();
  walk.each_vector([&](auto at, Lanes lanes) {
    Vec<T> g = load(walk.in(p.grad, at), lanes);
    Vec<T> x{};
    if (p.x != nullptr) x = load(walk.in(p.x, at), lanes);
#pragma unroll
    for (int q = 0; q < g.quads; ++q) {
      float grad[4], z[4], slope[4], x_hat[4];
      g.get(q, grad);
      x.get(q, z);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int i = 4 * q + j;
        const float centred = z[j] - table.get(walk, kMean, i);
        x_hat[j] = centred * table.get(walk, kRstd, i);
        z[j] = fmaf(centred, table.get(walk, kScale, i), table.get(walk, kBeta, i));
      }
      derive_all(p.activation, z, slope);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int i = 4 * q + j;
        const float dv = fmaf(grad[j], table.get(walk, kFactor, i), table.get(walk, kOffset, i)) * slope[j];
        const float mean = fmaf(x_hat[j], table.get(walk, kMeanDvX, i), table.get(walk, kMeanDv, i));
        grad[j] = table.get(walk, kScale, i) * (dv - mean);
      }
      g.set(q, grad);
    }
    store(walk.out(p.dx, at), g, lanes);
  });
}

static __global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    update_running_stats_kernel(RunningStatsParams p) {
  const int64_t channel = int64_t(blockIdx.x) * kStreamThreads + threadIdx.x;
  if (channel >= p.channels) return;
  const auto move = [&](const ParameterGradient& running, const Parameter& batch, float scale) {
    const float before = read({running.data, running.dtype}, channel);
    write(running, channel, fmaf(p.momentum, read(batch, channel) * scale - before, before));
  };
  move(p.running_mean, p.mean, 1.0f);
  move(p.running_var, p.var, float(p.count) / float(p.count - 1));
}

}  // namespace effnet_kernels::cuda
