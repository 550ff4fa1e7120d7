// 1×1 convolutions over chunks or groups [begin, end) (cpu.h). Included per instruction set by foreach_capability.h.

#include "common/cpu/gemm.h"
#include "common/cpu/rows.h"

template <class T>
void pointwise_forward_rows(const PointwiseForwardParams& p, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const int64_t k = p.in_channels, n = p.out_channels, padded = padded_channels(n);
  const T* const x = static_cast<const T*>(p.x);
  T* const out = static_cast<T*>(p.out);
  Buffer<A> scratch = widening_scratch<T>(p.chunks.most_rows() * k);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = p.chunks.chunk_row(chunk), rows = p.chunks.chunk_rows(chunk);
    const A* const a = widened_rows(x + first * k, rows * k, scratch);
    Ahead ahead(tiles_of_product<A>(rows, n));
    if (chunk + 1 < end) ahead.add(out + p.chunks.chunk_row(chunk + 1) * n, p.chunks.chunk_rows(chunk + 1) * n);
    store_product(a, k, rows, static_cast<const A*>(p.weight), k, n, out + first * n, ahead);
    if (!p.mean) continue;
    for (int64_t channel = 0; channel < n; channel += Vec<A>::size) {
      const int lanes = int(std::min<int64_t>(Vec<A>::size, n - channel));
      auto moments = RunningMoments<A>::none();
      accumulate_moments<T, Layout::nhwc>(moments, out,
                                          Column<A, Layout::nhwc>{0, 0, channel, first * n + channel, n, rows, lanes});
      store(static_cast<A*>(p.mean) + chunk * padded + channel, moments.mean, AllLanes{});
      store(static_cast<A*>(p.m2) + chunk * padded + channel, moments.m2, AllLanes{});
    }
  }
}

template <class T>
void pointwise_backward_rows(const PointwiseBackwardParams& p, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const int64_t k = p.in_channels, n = p.out_channels, padded = padded_channels(k);
  const T *const grad = static_cast<const T*>(p.grad), *const x = static_cast<const T*>(p.x);
  T* const dx = static_cast<T*>(p.dx);
  Buffer<A> grad_scratch = widening_scratch<T>(p.chunks.most_rows() * n);
  Buffer<A> x_scratch = widening_scratch<T>(p.chunks.most_rows() * k);
  for (int64_t group = begin; group < end; ++group) {
    for (int64_t chunk = p.chunks.first_chunk(group); chunk < p.chunks.last_chunk(group); ++chunk) {
      const int64_t first = p.chunks.chunk_row(chunk), rows = p.chunks.chunk_rows(chunk);
      const A* const g = widened_rows(grad + first * n, rows * n, grad_scratch);
      if (p.weight) store_gradient(g, n, rows, static_cast<const A*>(p.weight), p.packed, n, k, dx + first * k);
      if (p.dweight) {
        const A* const a = widened_rows(x + first * k, rows * k, x_scratch);
        accumulate_outer(g, n, n, a, k, k, rows, static_cast<A*>(p.dweight) + group * n * padded, padded,
                         chunk > p.chunks.first_chunk(group));
      }
    }
  }
}

template <class A>
void outer_product_blocks(const OuterProductParams& p, int64_t begin, int64_t end) {
  const A *a = static_cast<const A*>(p.a), *b = static_cast<const A*>(p.b);
  const int64_t row = padded_channels(p.b_columns), first = begin * p.kBlock, last = end * p.kBlock;
  A* const out = static_cast<A*>(p.out);
  if (p.shares_rows()) {
    const int64_t count = std::min(last, p.a_columns) - first;
    accumulate_outer(a + first, p.a_row, count, b, p.b_row, p.b_columns, p.rows, out + first * row, row, false);
  } else {
    const int64_t count = std::min(last, p.b_columns) - first;
    accumulate_outer(a, p.a_row, p.a_columns, b + first, p.b_row, count, p.rows, out + first, row, false);
  }
}

inline void outer_product(const OuterProductParams& p, int64_t begin, int64_t end) {
  p.dtype == DType::float64 ? outer_product_blocks<double>(p, begin, end) : outer_product_blocks<float>(p, begin, end);
}
inline void pointwise_forward(const PointwiseForwardParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&](auto t) { pointwise_forward_rows<typename decltype(t)::type>(p, begin, end); });
}
inline void pointwise_backward(const PointwiseBackwardParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&](auto t) { pointwise_backward_rows<typename decltype(t)::type>(p, begin, end); });
}
