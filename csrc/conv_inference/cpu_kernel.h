// A convolution as a matrix product (cpu.h): of x itself where the kernel is one pixel, else of rows of x with their
// margins in scratch, where a patch's elements are at fixed distances. Included per instruction set by
// foreach_capability.h.
#include "common/cpu/inference.h"

inline float to_float(float v) { return v; }

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

// The sums of one unit of work, of `rows` pixels from `first` on and `columns` from `column` on, to the output.
inline void conv_finish(const ConvInferenceParams& p, const float* sums, int64_t first, int64_t rows, int64_t column,
                        int64_t columns) {
  const FinishParams finish{sums,    padded_channels(columns), rows,
                            columns, p.bias + column,          p.residual,
                            p.out,   p.out_channels,           first * p.out_channels + column};
  dispatch_inference_activation(p.activation, [&](auto act) {
    dispatch_float32_storage(p.dtype, [&](auto type) { finish_rows<typename decltype(type)::type>(finish, act); });
  });
}

inline void convolve_rows(const ConvInferenceParams& p, int64_t begin, int64_t end) {
  PaddedRows rows(p);
  Buffer<float> sums = Buffer<float>::unfilled(p.out_width * padded_channels(p.out_channels));
  const int64_t* const patch = rows.patch();
  for (int64_t unit = begin; unit < end; ++unit) {
    dispatch_float32_storage(p.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      rows.fill(static_cast<const T*>(p.x) + unit / p.out_height * p.x_image, unit % p.out_height);
    });
    product_into(
        rows.data(), rows.step(), [patch](int64_t k) { return patch[k]; }, p.out_width, p.weight, p.depth(),
        p.out_channels, sums.data(), padded_channels(p.out_channels));
    conv_finish(p, sums.data(), unit * p.out_width, p.out_width, 0, p.out_channels);
  }
}

// Rows of pixels from `first` on times `columns` from `column` on.
template <class T>
void multiply_pixels(const ConvInferenceParams& p, int64_t first, int64_t rows, int64_t column, int64_t columns,
                     Buffer<float>& sums) {
  const auto* const packed =
      packed_column(reinterpret_cast<const product_element_t<T>*>(p.weight), p.in_channels / kProductValues<T>, column);
  product_into(
      static_cast<const T*>(p.x) + first * p.in_channels, p.in_channels, [](int64_t k) { return k; }, rows, packed,
      p.in_channels, columns, sums.data(), padded_channels(columns));
  conv_finish(p, sums.data(), first, rows, column, columns);
}

template <class T>
void convolve_pixels(const ConvInferenceParams& p, int64_t begin, int64_t end) {
  const int64_t pixels = p.images * p.out_pixels();
  if (p.cuts_columns()) {
    const int64_t first = p.columns().begin(begin), columns = p.columns().begin(end) - first;
    Buffer<float> sums = Buffer<float>::unfilled(pixels * padded_channels(columns));
    return multiply_pixels<T>(p, 0, pixels, first, columns, sums);
  }
  Buffer<float> sums = Buffer<float>::unfilled(p.chunk() * padded_channels(p.out_channels));
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t first = unit * p.chunk();
    multiply_pixels<T>(p, first, std::min(p.chunk(), pixels - first), 0, p.out_channels, sums);
  }
}

inline void conv_inference_units(const ConvInferenceParams& p, int64_t begin, int64_t end) {
#ifndef EK_BFLOAT16_INSTRUCTIONS
  if (!p.plain()) return convolve_rows(p, begin, end);
#endif
  dispatch_product(p.bfloat16_products,
                   [&](auto type) { convolve_pixels<typename decltype(type)::type>(p, begin, end); });
}
