// A convolution as a matrix product (cpu.h): of x itself where the kernel is one pixel, else of rows of x with their
// margins in scratch, where a patch's elements are at fixed distances. Included per instruction set by
// foreach_capability.h.
#include "common/cpu/inference.h"
#include "common/cpu/gemm.h"

inline float to_float(float v) { return v; }

// Bias, activation and residual on the way from registers to memory; `start` is the element of row 0. The dtype is a
// run-time value: products for every dtype would be several times the code.
template <class Act>
struct ConvEpilogue {
  const ConvInferenceParams& p;
  Act act;
  int64_t start;

  template <class Lanes>
  EK_INLINE void operator()(int64_t row, int64_t column, Vec<float> sum, Lanes lanes) const {
    const Vec<float> v = act(sum + load(p.bias + column, AllLanes{}));
    dispatch_float32_storage(p.dtype, [&](auto type) __attribute__((always_inline)) {
      using T = typename decltype(type)::type;
      const int64_t at = start + row * p.out_channels + column;
      const T* const residual = static_cast<const T*>(p.residual);
      store(static_cast<T*>(p.out) + at, residual ? v + load(residual + at, lanes) : v, lanes);
    });
  }
};

// The rows of x under one row of the output, with zero margins: rows of pixels where the channels of x are neighbours,
// else rows of each channel.
class PaddedRows {
 public:
  explicit PaddedRows(const ConvInferenceParams& params)
      : p(params),
        pixels(p.x_channel == 1),
        positions(std::max((p.out_width - 1) * p.stride + p.kernel_size, p.left + p.width)),
        values(p.kernel_size * p.in_channels * positions),
        offsets(p.depth()) {
    int64_t k = 0;
    for (int64_t ky = 0; ky < p.kernel_size; ++ky) {
      for (int64_t kx = 0; kx < p.kernel_size; ++kx) {
        for (int64_t c = 0; c < p.in_channels; ++c) offsets[k++] = at(ky, kx, c);
      }
    }
  }

  template <class T>
  void fill(const T* image, int64_t out_y) {
    for (int64_t ky = 0; ky < p.kernel_size; ++ky) {
      const int64_t y = out_y * p.stride - p.top + ky;
      const bool inside = y >= 0 && y < p.height;
      const T* const row = image + y * p.x_row;
      if (pixels && p.x_column == p.in_channels) {
        copy<T>(inside ? row : nullptr, 1, p.width * p.in_channels, values.data() + at(ky, p.left, 0), 1);
        continue;
      }
      const int64_t step = pixels ? p.in_channels : 1;
      for (int64_t c = 0; c < p.in_channels; ++c) {
        copy<T>(inside ? row + c * p.x_channel : nullptr, p.x_column, p.width, values.data() + at(ky, p.left, c), step);
      }
    }
  }
  const float* data() const { return values.data(); }
  int64_t step() const { return p.stride * (pixels ? p.in_channels : 1); }  // from one output pixel to the next
  const int64_t* patch() const { return offsets.data(); }

 private:
  int64_t at(int64_t ky, int64_t x, int64_t c) const {
    return pixels ? (ky * positions + x) * p.in_channels + c : (ky * p.in_channels + c) * positions + x;
  }

  template <class T>
  static void copy(const T* source, int64_t source_step, int64_t count, float* target, int64_t target_step) {
    int64_t i = 0;
    if (source && source_step == 1 && target_step == 1) {
      constexpr int size = Vec<float>::size;
      for (; i + size <= count; i += size) store(target + i, load(source + i, AllLanes{}), AllLanes{});
    }
    for (; i < count; ++i) target[i * target_step] = source ? to_float(source[i * source_step]) : 0.0f;
  }

  const ConvInferenceParams& p;
  const bool pixels;
  const int64_t positions;
  Buffer<float> values;  // the margins stay zero
  Buffer<int64_t> offsets;
};

template <class Act>
void convolve_rows(const ConvInferenceParams& p, Act act, int64_t begin, int64_t end) {
  PaddedRows rows(p);
  const int64_t* const patch = rows.patch();
  for (int64_t unit = begin; unit < end; ++unit) {
    dispatch_float32_storage(p.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      rows.fill(static_cast<const T*>(p.x) + unit / p.out_height * p.x_image, unit % p.out_height);
    });
    multiply_rows_at(
        rows.data(), rows.step(), [patch](int64_t k) { return patch[k]; }, p.out_width, p.weight, p.depth(),
        p.out_channels, ConvEpilogue<Act>{p, act, unit * p.out_width * p.out_channels});
  }
}

template <class Act>
void convolve_pixels(const ConvInferenceParams& p, Act act, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t first = unit * p.chunk(), count = std::min(p.chunk(), p.images * p.out_pixels() - first);
    multiply_rows(static_cast<const float*>(p.x) + first * p.in_channels, p.in_channels, count, p.weight, p.in_channels,
                  p.out_channels, ConvEpilogue<Act>{p, act, first * p.out_channels});
  }
}

inline void conv_inference_units(const ConvInferenceParams& p, int64_t begin, int64_t end) {
  dispatch_fast_activation(p.activation, [&](auto act) {
    p.plain() ? convolve_pixels(p, act, begin, end) : convolve_rows(p, act, begin, end);
  });
}
