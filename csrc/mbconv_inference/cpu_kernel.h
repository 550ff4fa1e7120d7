// An MBConv block's three steps for one image (cpu.h): expand and convolve a block of channels, squeeze and excite,
// project rows of pixels. Included per instruction set by foreach_capability.h.
#include "common/cpu/inference.h"
#include "mbconv_inference/cpu_depthwise.h"

// x in float32, for dtypes that are not.
template <class T>
void widen_pixels(const T* x, int64_t size, float* out) {
  int64_t i = 0;
  for (; i + Vec<float>::size <= size; i += Vec<float>::size) store(out + i, load(x + i, AllLanes{}), AllLanes{});
  if (i < size) store(out + i, load(x + i, int(size - i)), int(size - i));
}

// The channels of one block, from x to z: rows are expanded into the ring as the convolution comes to need them.
// T is what products multiply: float, or bfloat16.
template <class T, class Act>
class BlockOfChannels {
 public:
  static constexpr int size = Vec<float>::size;
  static constexpr int64_t kVectors = MBConvInferenceParams::kBlockVectors * kChannelPadding / size;

  BlockOfChannels(const MBConvInferenceParams& params, const MBConvImage& image_, Act activation)
      : p(params),
        act(activation),
        s(params.shape),
        image(image_),
        ring(RowRing::make(s, kVectors)),
        planes(Buffer<float>::unfilled(kVectors * ring.plane_size())),
        offsets(Buffer<int64_t>::unfilled(ring.rows * s.width)) {
    for (int64_t v = 0; v < kVectors; ++v) ring.clear_margins(planes.data() + v * ring.plane_size());
    for (int64_t y = 0; y < ring.rows; ++y) {
      for (int64_t x = 0; x < s.width; ++x) offsets[y * s.width + x] = y * ring.row_size() + (s.left + x) * size;
    }
  }

  // Strips that follow one another, so that rows stay in the ring.
  void run(int64_t block, int64_t first_strip, int64_t end_strip) {
    first = p.block_begin(block);
    vectors = (p.block_begin(block + 1) - first) / size;
    ready = 0;
    for (int64_t strip = first_strip; strip < end_strip; ++strip) {
      pooled = image.pooled + strip * p.row() + first;
      for (int64_t v = 0; v < vectors; ++v) store(pooled + v * size, Vec<float>::zero(), AllLanes{});
      const int64_t begin = p.strip_begin(strip), end = p.strip_begin(strip + 1);
      for (int64_t y = begin; y < end; y += ring.strip) fill_and_convolve(y, std::min(y + ring.strip, end));
    }
  }

 private:
  void fill_and_convolve(int64_t begin, int64_t end) {
    const int64_t needed = std::min(s.height, (end - 1) * s.stride - s.top + s.kernel_size);
    if (needed > ready) {
      // Rows that no output reads are skipped.
      ready = std::max(ready, std::min(begin * s.stride - s.top, needed));
      p.expand ? expand(ready, needed) : copy(ready, needed);
      ready = needed;
    }
    dispatch_kernel_and_stride(s.kernel_size, s.stride,
                               [&](auto kernel, auto stride) { convolve<kernel(), stride()>(begin, end); });
  }

  void expand(int64_t begin, int64_t end) {
    const float* const bias = p.expand_bias + first;
    using E = product_element_t<T>;
    const int64_t depth = p.in_channels / kProductValues<T>;
    const E* const packed = packed_column(reinterpret_cast<const E*>(p.expand), depth, first);
    const E* const x = static_cast<const E*>(image.x);
    float* const target = planes.data();
    const int64_t plane = ring.plane_size();
    // The ring's rows are in one piece up to its end.
    while (begin < end) {
      const int64_t slot = begin % ring.rows;
      const int64_t count = std::min(end - begin, ring.rows - slot);
      const int64_t* const at = offsets.data() + slot * s.width;
      multiply_rows(x + begin * s.width * depth, depth, count * s.width, packed, depth, vectors * size,
                    [=, act = act](int64_t row, int64_t column, Vec<float> sum, auto) {
                      const Vec<float> v = sum + load(bias + column, AllLanes{});
                      store(target + column / size * plane + at[row], act(v), AllLanes{});
                    });
      begin += count;
    }
  }

  void copy(int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      for (int64_t v = 0; v < vectors; ++v) {
        const int64_t channel = first + v * size;
        const int lanes = int(std::clamp<int64_t>(s.channels - channel, 0, size));
        float* const target = planes.data() + v * ring.plane_size() + ring.pixel(y, 0);
        const T* const source = static_cast<const T*>(image.x) + y * s.width * s.channels + channel;
        for (int64_t x = 0; x < s.width; ++x) {
          const T* const pixel = source + x * s.channels;
          store(target + x * size, lanes == size ? load(pixel, AllLanes{}) : load(pixel, lanes), AllLanes{});
        }
      }
    }
  }

  template <int K, int S>
  void convolve(int64_t begin, int64_t end) {
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t channel = first + v * size;
      const Vec<float> bias = load(p.depthwise_bias + channel, AllLanes{});
      Vec<float> sum = load(pooled + v * size, AllLanes{});
      for (int64_t y = begin; y < end; ++y) {
        const float* rows[K];
        for (int ky = 0; ky < K; ++ky) rows[ky] = planes.data() + v * ring.plane_size() + ring.at(y * S - s.top + ky);
        T* const z = static_cast<T*>(image.z) + y * s.out_width * p.row() + channel;
        const auto finish = [&](int64_t x, Vec<float> v) {
          const Vec<float> value = act(v);
          store(z + x * p.row(), value, AllLanes{});
          sum += value;
        };
        for_each_tile_of_rows(s.out_width, [&](auto count, int64_t x) {
          depthwise_tile<K, S, count()>(rows, x, p.depthwise + channel, p.row(), bias, finish);
        });
      }
      store(pooled + v * size, sum, AllLanes{});
    }
  }

  const MBConvInferenceParams& p;
  const Act act;
  const DepthwiseShape& s;
  const MBConvImage& image;
  const RowRing ring;
  Buffer<float> planes;
  Buffer<int64_t> offsets;  // of a pixel of the ring's rows
  int64_t first = 0, vectors = 0;
  float* pooled = nullptr;
  int64_t ready = 0;  // rows of x that have been through the ring
};

// out = act(packedᵀ v + bias): one of squeeze-and-excite's layers.
template <class Act>
EK_INLINE void excite_layer(Act act, const float* v, const float* packed, int64_t depth, const float* bias,
                            int64_t columns, float* out) {
  constexpr int kChains = 4;  // sums that do not wait for each other
  for (int64_t column = 0; column < columns; column += Vec<float>::size) {
    const float* const w = packed_column(packed, depth, column);
    Vec<float> sums[kChains];
    for (auto& sum : sums) sum = Vec<float>::zero();
    int64_t k = 0;
    for (; k + kChains <= depth; k += kChains) {
      for (int i = 0; i < kChains; ++i) {
        sums[i] += Vec<float>::broadcast(v[k + i]) * load(w + (k + i) * kPackedColumns, AllLanes{});
      }
    }
    for (; k < depth; ++k) sums[0] += Vec<float>::broadcast(v[k]) * load(w + k * kPackedColumns, AllLanes{});
    const Vec<float> sum = (sums[0] + sums[1]) + (sums[2] + sums[3]) + load(bias + column, AllLanes{});
    store(out + column, act(sum), AllLanes{});
  }
}

// Entry points.

inline void mbconv_widen(const MBConvInferenceParams& p, const void* x, int64_t size, float* out) {
  dispatch_float32_storage(
      p.dtype, [&](auto type) { widen_pixels(static_cast<const typename decltype(type)::type*>(x), size, out); });
}

inline void mbconv_channels(const MBConvInferenceParams& p, const MBConvImage& image, int64_t begin, int64_t end) {
  dispatch_product(p.bfloat16_products, [&](auto type) {
    dispatch_inference_activation(p.activation, [&](auto act) {
      BlockOfChannels<typename decltype(type)::type, decltype(act)> blocks(p, image, act);
      p.for_each_block_of_units(begin, end, [&](int64_t block, int64_t first_strip, int64_t end_strip) {
        blocks.run(block, first_strip, end_strip);
      });
    });
  });
}

inline void mbconv_excite(const MBConvInferenceParams& p, const MBConvImage& image) {
  const Vec<float> count = Vec<float>::broadcast(float(p.shape.out_pixels()));
  for (int64_t c = 0; c < p.row(); c += Vec<float>::size) {
    Vec<float> sum = load(image.pooled + c, AllLanes{});
    for (int64_t strip = 1; strip < p.strips(); ++strip) {
      sum += load(image.pooled + strip * p.row() + c, AllLanes{});
    }
    store(image.pooled + c, sum / count, AllLanes{});
  }
  Buffer<float> hidden = Buffer<float>::unfilled(padded_channels(p.squeezed));
  dispatch_inference_activation(p.activation, [&](auto act) {
    excite_layer(act, image.pooled, p.reduce, p.shape.channels, p.reduce_bias, padded_channels(p.squeezed),
                 hidden.data());
  });
  const auto excite = [&](auto gate) {
    excite_layer([](Vec<float> v) { return activate<decltype(gate)::value>(v); }, hidden.data(), p.excite, p.squeezed,
                 p.excite_bias, p.row(), image.scale);
  };
  if (p.gate == Activation::sigmoid) {
    excite(Constant<Activation::sigmoid>{});
  } else {
    excite(Constant<Activation::hardsigmoid>{});
  }
}

template <class T>
void scale_pixels(const MBConvInferenceParams& p, const MBConvImage& image, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    T* const z = static_cast<T*>(image.z) + row * p.row();
    for (int64_t c = 0; c < p.row(); c += Vec<float>::size) {
      store(z + c, load(z + c, AllLanes{}) * load(image.scale + c, AllLanes{}), AllLanes{});
    }
  }
}

inline void mbconv_scale(const MBConvInferenceParams& p, const MBConvImage& image, int64_t begin, int64_t end) {
  dispatch_product(p.bfloat16_products,
                   [&](auto type) { scale_pixels<typename decltype(type)::type>(p, image, begin, end); });
}

// The projection's weights times the scale of the channel that each belongs to.
template <class T>
void scale_weights(const MBConvInferenceParams& p, const MBConvImage& image) {
  constexpr int size = Vec<float>::size;
  constexpr int64_t values = kProductValues<T>, row = kPackedColumns * values;
  const T* weights = reinterpret_cast<const T*>(p.project);
  T* scaled = reinterpret_cast<T*>(image.scaled_project);
  for (int64_t group = 0; group < padded_channels(p.out_channels) / kPackedColumns; ++group) {
    for (int64_t c = 0; c < p.shape.channels; c += values, weights += row, scaled += row) {
      Vec<float> factor = Vec<float>::broadcast(image.scale[c]);
      if constexpr (values > 1) {
        float factors[size];
        for (int lane = 0; lane < size; ++lane) factors[lane] = image.scale[c + lane % values];
        factor = load(factors, AllLanes{});
      }
      for (int64_t i = 0; i < row; i += size) store(scaled + i, load(weights + i, AllLanes{}) * factor, AllLanes{});
    }
  }
}

inline void mbconv_scale_weights(const MBConvInferenceParams& p, const MBConvImage& image) {
  dispatch_product(p.bfloat16_products, [&](auto type) { scale_weights<typename decltype(type)::type>(p, image); });
}

// `columns` of the product from `column` on, for `rows` of z from `row` on.
template <class T>
void project(const MBConvInferenceParams& p, const MBConvImage& image, int64_t row, int64_t rows, int64_t column,
             int64_t columns, Buffer<float>& sums) {
  using E = product_element_t<T>;
  const float* const weights = p.scales_weights() ? image.scaled_project : p.project;
  const E* const packed =
      packed_column(reinterpret_cast<const E*>(weights), p.shape.channels / kProductValues<T>, column);
  const int64_t width = padded_channels(columns);
  product_into(
      static_cast<const T*>(image.z) + row * p.row(), p.row(), [](int64_t k) { return k; }, rows, packed,
      p.shape.channels, columns, sums.data(), width);
  const FinishParams finish{sums.data(),
                            width,
                            rows,
                            columns,
                            p.project_bias + column,
                            p.residual ? image.stored : nullptr,
                            image.out,
                            p.out_channels,
                            row * p.out_channels + column};
  dispatch_float32_storage(
      p.dtype, [&](auto type) { finish_rows<typename decltype(type)::type>(finish, [](Vec<float> v) { return v; }); });
}

template <class T>
void project_units(const MBConvInferenceParams& p, const MBConvImage& image, int64_t begin, int64_t end) {
  const int64_t pixels = p.shape.out_pixels();
  const auto scratch = [](int64_t rows, int64_t columns) {
    return Buffer<float>::unfilled(rows * padded_channels(columns));
  };
  if (p.cuts_columns()) {
    const int64_t first = p.columns().begin(begin), last = p.columns().begin(end);
    Buffer<float> sums = scratch(pixels, last - first);
    project<T>(p, image, 0, pixels, first, last - first, sums);
    return;
  }
  const int64_t chunks = p.chunks_of(end - begin);
  Buffer<float> sums = scratch((end - begin + chunks - 1) / chunks, p.out_channels);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t first = begin + (end - begin) * chunk / chunks, last = begin + (end - begin) * (chunk + 1) / chunks;
    project<T>(p, image, first, last - first, 0, p.out_channels, sums);
  }
}

inline void mbconv_project(const MBConvInferenceParams& p, const MBConvImage& image, int64_t begin, int64_t end) {
  dispatch_product(p.bfloat16_products,
                   [&](auto type) { project_units<typename decltype(type)::type>(p, image, begin, end); });
}
