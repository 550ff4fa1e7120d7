// The streaming passes over one activation tensor, on CPU. Every operator is a sequence of these and of the depthwise
// kernels. Each pass reads and writes every element at most once, whatever the layout and dtype.
//
// Per-channel vectors are arrays of the accumulator type A (float64 for float64, else float32), one row of
// padded_channels(C) values for a channel vector (C) or for each of N rows (N, C); kernels may read the padding.
// Sums go to one row per part (a piece of one image) and are added up in the order of the parts, so that a result
// does not depend on the number of threads.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/dispatch.h"

namespace effnet_kernels::cpu {

inline constexpr int64_t kChannelPadding = 16;  // lanes of the widest vector
inline int64_t padded_channels(int64_t channels) {
  return (channels + kChannelPadding - 1) / kChannelPadding * kChannelPadding;
}

// Shape of an activation tensor, and how its pixels are cut into parts.
struct Extent {
  DType dtype;
  Layout layout;
  int64_t images, channels, pixels;

  static constexpr int64_t kChunkPixels = 256, kMaxSliceChannels = 1280;  // channels_last

  int64_t elements() const { return images * channels * pixels; }
  int64_t row() const { return padded_channels(channels); }
  // Elements that lie side by side and are not to be cut by a vector: a pixel, or a plane.
  int64_t run() const { return layout == Layout::nchw ? pixels : channels; }
  int64_t chunks() const { return layout == Layout::nchw ? 1 : (pixels + kChunkPixels - 1) / kChunkPixels; }
  int64_t parts() const { return images * chunks(); }
  int64_t part_pixels(int64_t part) const {
    if (layout == Layout::nchw) return pixels;
    const int64_t rest = pixels - part % chunks() * kChunkPixels;
    return rest < kChunkPixels ? rest : kChunkPixels;
  }
  // Slices of channels of about the same size: one in NCHW.
  int64_t slice_channels() const {
    if (layout == Layout::nchw) return 1;
    const int64_t slices = (channels + kMaxSliceChannels - 1) / kMaxSliceChannels;
    return slices == 0 ? 1 : padded_channels((channels + slices - 1) / slices);
  }
  int64_t slices() const { return (channels + slice_channels() - 1) / slice_channels(); }
};

// v = (x − mean) · scale + beta with scale = γ · rstd; x̂ = (x − mean) · rstd.
struct Affine {
  const void *mean, *rstd, *scale, *beta;
};

// mean[part, c] and m2[part, c] = Σ (x − mean)².
struct StatisticsParams {
  Extent extent;
  const void* x;
  void *mean, *m2;
};
void statistics(const StatisticsParams&);

// out = act(v) · factor[n, c] + residual; factor and residual may be null.
struct NormalizeParams {
  Extent extent;
  Activation activation;
  const void* x;
  Affine affine;
  const void *factor, *residual;
  void* out;
};
void normalize(const NormalizeParams&);

// Per part and channel, with z = act(v): z_sum = Σ z, and, where not null, slope_sum = A3 = Σ act'(v) and
// slope_x_sum = A5 = Σ act'(v) x̂.
struct ForwardSumsParams {
  Extent extent;
  Activation activation;
  const void* x;
  Affine affine;
  void *z_sum, *slope_sum, *slope_x_sum;
};
void forward_sums(const ForwardSumsParams&);

// Per part and channel: gz_sum = A1 = Σ g z (where not null) and, where not null, slope_sum = A2 = Σ g act'(v) and
// slope_x_sum = A4 = Σ g act'(v) x̂.
struct BackwardSumsParams {
  Extent extent;
  Activation activation;
  const void *grad, *x;
  Affine affine;
  void *gz_sum, *slope_sum, *slope_x_sum;
};
void backward_sums(const BackwardSumsParams&);

// dz = g · factor[n, c] + offset[n, c]; dv = dz · act'(v); dx = scale · (dv − mean_dv − x̂ · mean_dv_x), where
// mean_dv = dβ/M and mean_dv_x = dγ/M per channel. factor and offset may be null (1 and 0); dx may be grad itself.
// Where there is neither a BatchNorm nor an activation, dx = dz, and x may be null.
struct Gradient {
  const void *factor, *offset, *mean_dv, *mean_dv_x;
};
struct InputGradientParams {
  Extent extent;
  Activation activation;
  const void *grad, *x;
  Affine affine;
  Gradient gradient;
  void* dx;
};
void input_gradient(const InputGradientParams&);

}  // namespace effnet_kernels::cpu
