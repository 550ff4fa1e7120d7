// What is computed per channel between the passes: BatchNorm's constants, statistics and gradients from sums over parts.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/cpu/channel_steps.h"
#include "common/cpu/passes.h"
#include "common/cpu/tensor_rows.h"
#include "common/cpu/transpose.h"
#include "common/tensor.h"

namespace effnet_kernels::cpu {

template <class A>
inline constexpr DType dtype_of_values = sizeof(A) == 8 ? DType::float64 : DType::float32;

inline Extent extent_of(const Tensor& x) {
  return {dtype_of(x), layout_of(x), x.size(0), x.size(1), x.size(2) * x.size(3)};
}

// A weight (C, 1, K, K) as [taps, padded channels], and its gradient back.
template <class A>
Buffer<A> read_depthwise_weight(const Tensor& w, int64_t channels, int taps) {
  const Buffer<A> by_channel = read_rows<A>(w, channels, taps);
  Buffer<A> by_tap = padded_rows<A>(taps, channels);
  transpose(by_channel.data(), padded_channels(taps), channels, taps, by_tap.data(), padded_channels(channels));
  return by_tap;
}
template <class A>
Tensor depthwise_weight_gradient(const A* by_tap, int64_t channels, int taps, const Tensor& w) {
  Buffer<A> by_channel = padded_rows<A>(channels, taps);
  transpose(by_tap, padded_channels(channels), taps, channels, by_channel.data(), padded_channels(taps));
  return parameter_gradient(by_channel.data(), channels, taps, w);
}

// sums[g, :] = Σ of `size` consecutive rows, for every group g.
template <class A>
void sum_rows_into(const A* rows, int64_t groups, int64_t size, int64_t row, A* sums) {
  if (size == 0) {
    std::fill_n(sums, groups * row, A(0));
  } else {
    sum_rows({dtype_of_values<A>, rows, groups, size, row, sums});
  }
}
template <class A>
Buffer<A> sum_rows(Buffer<A> rows, int64_t groups, int64_t size, int64_t row) {
  if (size == 1) return rows;
  Buffer<A> sums = Buffer<A>::unfilled(groups * row);
  sum_rows_into(rows.data(), groups, size, row, sums.data());
  return sums;
}

// A pass's sums per part, which become a result per image; where an image is one part, the pass writes the result.
template <class A>
class ImageSums {
 public:
  ImageSums(const Tensor& like, const Extent& extent)
      : extent_(extent),
        result_(empty_vector(like, {extent.images, extent.channels}), extent.images, extent.channels),
        parts_(padded_rows<A>(extent.chunks() == 1 ? 0 : extent.parts(), extent.channels)) {}

  A* data() { return extent_.chunks() == 1 ? result_.data() : parts_.data(); }
  Tensor tensor() {
    if (extent_.chunks() != 1) {
      sum_rows_into(parts_.data(), extent_.images, extent_.chunks(), extent_.row(), result_.data());
    }
    return result_.tensor();
  }

 private:
  Extent extent_;
  ResultRows<A> result_;
  Buffer<A> parts_;
};

// Mean and biased variance per channel, from the means and M2 of parts of part_size(part) values each.
template <class A>
struct Statistics {
  Buffer<A> mean, var;
};
template <class A, class PartSize>
Statistics<A> merge_statistics(const Buffer<A>& means, const Buffer<A>& m2s, int64_t parts, int64_t row,
                               PartSize part_size) {
  Statistics<A> statistics{Buffer<A>::unfilled(row), Buffer<A>::unfilled(row)};
  Buffer<double> sizes = Buffer<double>::unfilled(parts), mean(row), m2(row);
  for (int64_t part = 0; part < parts; ++part) sizes[part] = double(part_size(part));
  merge_statistics({dtype_of_values<A>, means.data(), m2s.data(), sizes.data(), parts, row, mean.data(), m2.data(),
                    statistics.mean.data(), statistics.var.data()});
  return statistics;
}

// The batch statistics of x: one pass over it.
template <class A>
Statistics<A> batch_statistics(const Extent& extent, const Tensor& x) {
  Buffer<A> means = padded_rows<A>(extent.parts(), extent.channels),
            m2s = padded_rows<A>(extent.parts(), extent.channels);
  statistics({extent, x.const_data_ptr(), means.data(), m2s.data()});
  return merge_statistics(means, m2s, extent.parts(), extent.row(),
                          [&](int64_t part) { return extent.part_pixels(part); });
}

// A BatchNorm's constants per channel, zero in the padding.
template <class A>
struct BatchNormValues {
  Buffer<A> mean, rstd, scale, beta;

  Affine affine() const { return {mean.data(), rstd.data(), scale.data(), beta.data()}; }
};
template <class A>
BatchNormValues<A> batch_norm_values(const Tensor& gamma, const Tensor& beta, Statistics<A>&& statistics,
                                     int64_t channels, double eps) {
  const int64_t row = padded_channels(channels);
  const Buffer<A> gammas = read_rows<A>(gamma, 1, channels);
  BatchNormValues<A> values{std::move(statistics.mean), Buffer<A>(row), Buffer<A>(row),
                            read_rows<A>(beta, 1, channels)};
  for (int64_t c = 0; c < channels; ++c) {
    values.rstd[c] = A(1.0 / std::sqrt(double(statistics.var[c]) + eps));
    values.scale[c] = gammas[c] * values.rstd[c];
  }
  return values;
}
template <class A>
Statistics<A> given_statistics(const Tensor& mean, const Tensor& var, int64_t channels) {
  return {read_rows<A>(mean, 1, channels), read_rows<A>(var, 1, channels)};
}
// No BatchNorm: v = x.
template <class A>
BatchNormValues<A> identity_batch_norm(int64_t channels) {
  const int64_t row = padded_channels(channels);
  BatchNormValues<A> values{Buffer<A>(row), Buffer<A>(row), Buffer<A>(row), Buffer<A>(row)};
  for (int64_t c = 0; c < channels; ++c) values.rstd[c] = values.scale[c] = A(1);
  return values;
}

// Per-image sums of a pass over y: A1, A2 and A4 of docs/design.md, [N, padded channels].
template <class A>
struct BackwardSums {
  Buffer<A> gz, slope, slope_x;
};
template <class A>
BackwardSums<A> image_backward_sums(const Extent& extent, Activation activation, const Tensor& grad, const Tensor& x,
                                    const Affine& affine, bool with_gz) {
  const auto rows = [&](int64_t parts) { return padded_rows<A>(parts, extent.channels); };
  Buffer<A> gz = rows(with_gz ? extent.parts() : 0), slope = rows(extent.parts()), slope_x = rows(extent.parts());
  backward_sums({extent, activation, grad.const_data_ptr(), x.const_data_ptr(), affine, with_gz ? gz.data() : nullptr,
                 slope.data(), slope_x.data()});
  const auto per_image = [&](Buffer<A>& sums) {
    return sum_rows(std::move(sums), extent.images, extent.chunks(), extent.row());
  };
  return {with_gz ? per_image(gz) : Buffer<A>(0), per_image(slope), per_image(slope_x)};
}

// dβ and dγ from the per-image sums, and their means.
template <class A>
struct BatchNormGradient {
  Buffer<A> dbeta, dgamma, mean_dv, mean_dv_x;
};
template <class A>
BatchNormGradient<A> batch_norm_gradient(const Extent& extent, const A* slope, const A* slope_x, const A* factor,
                                         const A* offset, const A* a3, const A* a5, bool training) {
  const int64_t row = extent.row();
  const auto result = [&] { return Buffer<A>::unfilled(row); };
  BatchNormGradient<A> gradient{result(), result(), result(), result()};
  Buffer<double> beta_sum(row), gamma_sum(row);
  batch_norm_gradient({dtype_of_values<A>, slope, slope_x, factor, offset, a3, a5, extent.images, row,
                       training ? double(extent.images * extent.pixels) : 0, beta_sum.data(), gamma_sum.data(),
                       gradient.dbeta.data(), gradient.dgamma.data(), gradient.mean_dv.data(),
                       gradient.mean_dv_x.data()});
  return gradient;
}

}  // namespace effnet_kernels::cpu
