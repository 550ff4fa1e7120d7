// The passes of cpu.h over chunks or groups [begin, end). Included per instruction set by foreach_capability.h.

#include "common/cpu/gemm.h"
#include "common/cpu/rows.h"

// A BatchNorm's constants for the channels of one vector.
template <class A>
EK_INLINE ColumnAffine<A> affine_at(const Affine& affine, int64_t channel) {
  return column_affine<Layout::nhwc, A>(affine, channel);
}
// SE's scale of an image's channels; null without SE.
template <class A>
EK_INLINE const A* scale_of(const void* scale, int64_t image, int64_t row) {
  return scale ? static_cast<const A*>(scale) + image * row : nullptr;
}
template <class A>
EK_INLINE Vec<A> scale_at(const A* scale, int64_t channel) {
  return channel_values_or<Layout::nhwc>(scale, channel, A(1));
}

template <class A>
EK_INLINE void add_to(A* sums, Vec<A> values) {
  store(sums, load(sums, AllLanes{}) + values, AllLanes{});
}

// In the loops below what the parameters say is copied first: it would be read, and an image divided out, again after every
// store.

// z · scale of a part's rows.
template <class T, Activation Act>
void scaled_part(const ProjectForwardParams& p, int64_t part, accumulator_t<T>* scaled) {
  using A = accumulator_t<T>;
  const int64_t c = p.channels, row = padded_channels(c);
  const T* const y = static_cast<const T*>(p.y) + p.chunks.first_row(part) * c;
  const Affine affine2 = p.affine2;
  const A* const scales = scale_of<A>(p.scale, p.chunks.image(part), row);
  for_each_vector_of_rows<A>(p.chunks.part_size(part), c, [=](int64_t r, int64_t channel, auto lanes) {
    const auto affine = affine_at<A>(affine2, channel);
    const Vec<A> value = load(y + r * c + channel, lanes);
    const Vec<A> z = activate<Act>(affine.transformed(value));
    store(scaled + r * row + channel, z * scale_at(scales, channel), AllLanes{});
  });
}

// f(activation, part, its first row in the chunk) for every part of a chunk.
template <class Params, class F>
void for_each_part(const Params& p, int64_t chunk, F f) {
  for (int64_t part = p.chunks.first_part(chunk); part < p.chunks.last_part(chunk); ++part) {
    const int64_t row = p.chunks.first_row(part) - p.chunks.chunk_row(chunk);
    dispatch_batch_norm_activation(p.activation, [&](auto activation) { f(activation, part, row); });
  }
}

template <class T>
void project_forward_rows(const ProjectForwardParams& p, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const int64_t c = p.channels, n = p.out_channels, row = padded_channels(c);
  Buffer<A> scaled = Buffer<A>::unfilled(p.chunks.most_rows() * row);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    for_each_part(p, chunk, [&](auto activation, int64_t part, int64_t first) {
      scaled_part<T, activation()>(p, part, scaled.data() + first * row);
    });
    const int64_t rows = p.chunks.chunk_rows(chunk);
    Ahead ahead(tiles_of_product<A>(rows, n));
    if (chunk + 1 < end) {
      ahead.add(static_cast<const T*>(p.y) + p.chunks.chunk_row(chunk + 1) * c, p.chunks.chunk_rows(chunk + 1) * c);
    }
    store_product(scaled.data(), row, rows, static_cast<const A*>(p.weight), c, n,
                  static_cast<T*>(p.out) + p.chunks.chunk_row(chunk) * n, ahead);
  }
}

// A1, A2, A4 of one part, and z · scale of its rows.
template <class T, Activation Act>
void project_backward_part(const ProjectBackwardParams& p, int64_t part, accumulator_t<T>* scaled) {
  using A = accumulator_t<T>;
  const int64_t c = p.channels, row = padded_channels(c), first = p.chunks.first_row(part);
  const T *const y = static_cast<const T*>(p.y) + first * c, *const g = static_cast<const T*>(p.g) + first * c;
  A* const gz_sums = static_cast<A*>(p.gz_sum) + part * row;
  A* const slope_sums = static_cast<A*>(p.slope_sum) + part * row;
  A* const slope_x_sums = static_cast<A*>(p.slope_x_sum) + part * row;
  for (A* const sums : {gz_sums, slope_sums, slope_x_sums}) std::fill_n(sums, row, A(0));
  const Affine affine2 = p.affine2;
  const A* const scales = scale_of<A>(p.scale, p.chunks.image(part), row);
  for_each_vector_of_rows<A>(p.chunks.part_size(part), c, [=](int64_t r, int64_t channel, auto lanes) {
    const auto affine = affine_at<A>(affine2, channel);
    const Vec<A> scale = scale_at(scales, channel);
    const Vec<A> value = load(y + r * c + channel, lanes), grad = load(g + r * c + channel, lanes);
    const auto z = activate_with_derivative<Act>(affine.transformed(value));
    const Vec<A> dv = grad * z.derivative;
    store(scaled + r * row + channel, z.value * scale, AllLanes{});
    add_to(gz_sums + channel, grad * z.value);
    add_to(slope_sums + channel, dv);
    add_to(slope_x_sums + channel, dv * affine.normalized(value));
  });
}

template <class T>
void project_backward_rows(const ProjectBackwardParams& p, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const int64_t c = p.channels, n = p.out_channels, row = padded_channels(c);
  const T* const grad = static_cast<const T*>(p.grad);
  T* const g = static_cast<T*>(p.g);
  Buffer<A> scaled_scratch = Buffer<A>::unfilled(p.scaled ? 0 : p.chunks.most_rows() * row);
  Buffer<A> scratch = widening_scratch<T>(p.chunks.most_rows() * n);
  for (int64_t group = begin; group < end; ++group) {
    for (int64_t chunk = p.chunks.first_chunk(group); chunk < p.chunks.last_chunk(group); ++chunk) {
      const int64_t first = p.chunks.chunk_row(chunk), rows = p.chunks.chunk_rows(chunk);
      const A* const dout = widened_rows(grad + first * n, rows * n, scratch);
      A* const scaled = p.scaled ? static_cast<A*>(p.scaled) + first * row : scaled_scratch.data();
      Ahead part_ahead(tiles_of_product<A>(rows, c));
      part_ahead.add(static_cast<const T*>(p.y) + first * c, rows * c);
      store_gradient(dout, n, rows, static_cast<const A*>(p.weight), p.packed, n, c, g + first * c, part_ahead);
      for_each_part(p, chunk, [&](auto activation, int64_t part, int64_t row_in_chunk) {
        project_backward_part<T, activation()>(p, part, scaled + row_in_chunk * row);
      });
      if (p.dweight) {
        Ahead ahead(tiles_of_product<A>(n, c));
        if (chunk + 1 < p.chunks.last_chunk(end - 1)) {
          ahead.add(g + p.chunks.chunk_row(chunk + 1) * c, p.chunks.chunk_rows(chunk + 1) * c);
        }
        accumulate_outer(dout, n, n, scaled, row, c, rows, static_cast<A*>(p.dweight) + group * n * row, row,
                         chunk > p.chunks.first_chunk(group), ahead);
      }
    }
  }
}

template <class T>
void expand_backward_rows(const ExpandBackwardParams& p, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const int64_t k = p.in_channels, c = p.channels, row = padded_channels(c);
  const T* const x = static_cast<const T*>(p.x);
  T* const dx = static_cast<T*>(p.dx);
  Buffer<A> du_scratch = Buffer<A>::unfilled(p.du ? 0 : p.chunks.most_rows() * row);
  Buffer<A> scratch = widening_scratch<T>(p.chunks.most_rows() * k);
  const Affine affine1 = p.affine1;
  const A *const means = static_cast<const A*>(p.mean_dv), *const means_x = static_cast<const A*>(p.mean_dv_x);
  for (int64_t group = begin; group < end; ++group) {
    for (int64_t chunk = p.chunks.first_chunk(group); chunk < p.chunks.last_chunk(group); ++chunk) {
      const int64_t first = p.chunks.chunk_row(chunk), rows = p.chunks.chunk_rows(chunk);
      A* const du = p.du ? static_cast<A*>(p.du) + first * row : du_scratch.data();
      const T *const dv = static_cast<const T*>(p.dv) + first * c, *const u = static_cast<const T*>(p.u) + first * c;
      for_each_vector_of_rows<A>(rows, c, [=](int64_t r, int64_t channel, auto lanes) {
        const auto affine = affine_at<A>(affine1, channel);
        const Vec<A> mean_dv = load(means + channel, AllLanes{});
        const Vec<A> mean_dv_x = load(means_x + channel, AllLanes{});
        const int64_t at = r * c + channel;
        const Vec<A> centred = load(dv + at, lanes) - mean_dv - affine.normalized(load(u + at, lanes)) * mean_dv_x;
        store(du + r * row + channel, affine.scale * centred, AllLanes{});
      });
      Ahead ahead((dx ? tiles_of_product<A>(rows, k) : 0) + (p.dweight ? tiles_of_product<A>(k, c) : 0));
      if (chunk + 1 < p.chunks.last_chunk(end - 1)) {
        const int64_t next = p.chunks.chunk_row(chunk + 1), count = p.chunks.chunk_rows(chunk + 1) * c;
        ahead.add(static_cast<const T*>(p.dv) + next * c, count);
        ahead.add(static_cast<const T*>(p.u) + next * c, count);
      }
      if (dx) store_gradient(du, row, rows, static_cast<const A*>(p.weight), p.packed, c, k, dx + first * k, ahead);
      if (!p.dweight) continue;
      const A* const a = widened_rows(x + first * k, rows * k, scratch);
      accumulate_outer(a, k, k, du, row, c, rows, static_cast<A*>(p.dweight) + group * k * row, row,
                       chunk > p.chunks.first_chunk(group), ahead);
    }
  }
}

// Entry points: dtype to template parameter.

inline void project_forward(const ProjectForwardParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&](auto dtype) { project_forward_rows<typename decltype(dtype)::type>(p, begin, end); });
}
inline void project_backward(const ProjectBackwardParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&](auto dtype) { project_backward_rows<typename decltype(dtype)::type>(p, begin, end); });
}
inline void expand_backward(const ExpandBackwardParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&](auto dtype) { expand_backward_rows<typename decltype(dtype)::type>(p, begin, end); });
}
