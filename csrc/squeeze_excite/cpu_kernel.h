// Squeeze-and-excite's two layers (cpu.h). Included per instruction set by foreach_capability.h.

#include "common/cpu/gemm.h"

// The sums of the lanes of as many vectors as a vector has lanes, as one vector: halves of pairs are added up, as a tree.
template <int N, class A>
EK_INLINE Vec<A> sums_of_lanes(const Vec<A>* rows) {
  if constexpr (N == 1) {
    return rows[0];
  } else {
    // Two vectors, of whose lanes runs of N / 2 are left to add: from either, each run plus the next.
    constexpr int distance = N / 2, size = Vec<A>::size;
    static constexpr auto runs =
        LaneIndices<A>::from([](int lane) { return lane / distance % 2 ? size + lane - distance : lane; });
    static constexpr auto next_runs =
        LaneIndices<A>::from([](int lane) { return lane / distance % 2 ? size + lane : lane + distance; });
    Vec<A> sums[N / 2];
    for (int i = 0; i < N / 2; ++i) {
      const auto a = rows[i].raw, b = rows[i + distance].raw;
      sums[i] = {__builtin_shuffle(a, b, runs.vector()) + __builtin_shuffle(a, b, next_runs.vector())};
    }
    return sums_of_lanes<N / 2>(sums);
  }
}

// out[i] = Σ_k matrix[i, k] · vector[k] + bias[i], over padded rows; as many rows at a time as a vector has lanes.
template <class A>
void matrix_times_vector(const A* matrix, int64_t rows, int64_t row, const A* vector, const A* bias, A* out) {
  constexpr int size = Vec<A>::size;
  for (int64_t first = 0; first < rows; first += size) {
    const A* sources[size];
    Vec<A> sums[size];
    for (int r = 0; r < size; ++r) {
      sources[r] = matrix + std::min(first + r, rows - 1) * row;
      sums[r] = Vec<A>::zero();
    }
    for (int64_t k = 0; k < row; k += size) {
      const Vec<A> v = load(vector + k, AllLanes{});
      for (int r = 0; r < size; ++r) sums[r] += v * load(sources[r] + k, AllLanes{});
    }
    const int lanes = int(std::min<int64_t>(size, rows - first));
    store(out + first, sums_of_lanes<size>(sums) + load(bias + first, AllLanes{}), lanes);
  }
}

// out[c] = Σ_rows matrix[row, c], for columns [begin, end).
template <class A>
void sums_of_columns(const A* matrix, int64_t rows, int64_t row, int64_t begin, int64_t end, A* out) {
  for (int64_t c = begin; c < end; c += Vec<A>::size) {
    const int lanes = int(std::min<int64_t>(Vec<A>::size, end - c));
    Vec<A> sum = Vec<A>::zero();
    for (int64_t r = 0; r < rows; ++r) sum += load(matrix + r * row + c, lanes);
    store(out + c, sum, lanes);
  }
}

template <class A>
void activate_row(Activation activation, const A* v, A* out, int64_t size) {
  dispatch_activation(activation, [&](auto act) {
    for (int64_t i = 0; i < size; i += Vec<A>::size)
      store(out + i, activate<act()>(load(v + i, AllLanes{})), AllLanes{});
  });
}

// out = grad · act'(v).
template <class A>
void derive_row(Activation activation, const A* v, const A* grad, A* out, int64_t size) {
  dispatch_activation(activation, [&](auto act) {
    for (int64_t i = 0; i < size; i += Vec<A>::size) {
      const Vec<A> slope = activate_with_derivative<act()>(load(v + i, AllLanes{})).derivative;
      store(out + i, load(grad + i, AllLanes{}) * slope, AllLanes{});
    }
  });
}

// ExciteParams with types.
template <class A>
struct ExciteView {
  const ExciteParams& p;
  int64_t c = padded_channels(p.channels), s = padded_channels(p.squeezed);

  const A* in(const void* matrix, int64_t row, int64_t columns) const {
    return static_cast<const A*>(matrix) + row * columns;
  }
  A* out(void* matrix, int64_t row, int64_t columns) const { return static_cast<A*>(matrix) + row * columns; }
};

// out = rows · weightᵀ + bias, for [images, depth] and [images, columns], both padded.
template <class A>
void linear(const A* rows, int64_t row, int64_t images, const void* packed, int64_t depth, int64_t columns,
            const A* bias, A* out) {
  const int64_t out_row = padded_channels(columns);
  multiply_rows(rows, row, images, static_cast<const A*>(packed), depth, columns,
                [=](int64_t image, int64_t column, Vec<A> sum, auto lanes) {
                  store(out + image * out_row + column, sum + load(bias + column, AllLanes{}), lanes);
                });
}

template <class A>
void excite_images_as_products(const ExciteView<A>& e, int64_t begin, int64_t end) {
  const ExciteParams& p = e.p;
  const int64_t images = end - begin;
  Buffer<A> activated = Buffer<A>::unfilled(images * e.s);
  A* const hidden = e.out(p.hidden, begin, e.s);
  A* const logits = e.out(p.logits, begin, e.c);
  linear(e.in(p.pooled, begin, e.c), e.c, images, p.w1_packed, p.channels, p.squeezed, e.in(p.b1, 0, 0), hidden);
  activate_row(p.activation, hidden, activated.data(), images * e.s);
  linear<A>(activated.data(), e.s, images, p.w2_packed, p.squeezed, p.channels, e.in(p.b2, 0, 0), logits);
  activate_row(p.gate, logits, e.out(p.scale, begin, e.c), images * e.c);
}

template <class A>
void excite_images(const ExciteParams& params, int64_t begin, int64_t end) {
  const ExciteView<A> e{params};
  const ExciteParams& p = params;
  if (p.w1_packed) return excite_images_as_products(e, begin, end);
  Buffer<A> activated(e.s);
  for (int64_t n = begin; n < end; ++n) {
    const A* const pooled = e.in(p.pooled, n, e.c);
    A* const hidden = e.out(p.hidden, n, e.s);
    A* const logits = e.out(p.logits, n, e.c);
    matrix_times_vector(e.in(p.w1, 0, 0), p.squeezed, e.c, pooled, e.in(p.b1, 0, 0), hidden);
    activate_row(p.activation, hidden, activated.data(), e.s);
    matrix_times_vector(e.in(p.w2, 0, 0), p.channels, e.s, activated.data(), e.in(p.b2, 0, 0), logits);
    activate_row(p.gate, logits, e.out(p.scale, n, e.c), e.c);
  }
}

template <class A>
void excite_scale_images(const ExciteParams& p, int64_t begin, int64_t end) {
  const ExciteView<A> e{p};
  for (int64_t n = begin; n < end; ++n) activate_row(p.gate, e.in(p.saved_logits, n, e.c), e.out(p.scale, n, e.c), e.c);
}

template <class A>
void excite_backward_images(const ExciteParams& p, int64_t begin, int64_t end) {
  const ExciteView<A> e{p};
  const int64_t images = end - begin;
  A* const dlogits = e.out(p.dlogits, begin, e.c);
  A* const dhidden = e.out(p.dhidden, begin, e.s);
  derive_row(p.gate, e.in(p.saved_logits, begin, e.c), e.in(p.dscale, begin, e.c), dlogits, images * e.c);
  activate_row(p.activation, e.in(p.saved_hidden, begin, e.s), e.out(p.activated, begin, e.s), images * e.s);
  multiply_as_they_lie(dlogits, e.c, 1, images, e.in(p.w2, 0, 0), e.s, e.s, p.channels, dhidden, e.s, false);
  derive_row(p.activation, e.in(p.saved_hidden, begin, e.s), dhidden, dhidden, images * e.s);
  multiply_as_they_lie(dhidden, e.s, 1, images, e.in(p.w1, 0, 0), e.c, e.c, p.squeezed, e.out(p.dpooled, begin, e.c),
                       e.c, false);
}

// Rows of dw2 and db2, one per channel.
template <class A>
void excite_backward_w2(const ExciteParams& p, int64_t begin, int64_t end) {
  const ExciteView<A> e{p};
  const A* const dlogits = e.in(p.dlogits, 0, 0);
  accumulate_outer(dlogits + begin, e.c, end - begin, e.in(p.activated, 0, 0), e.s, e.s, p.images,
                   e.out(p.dw2, begin, e.s), e.s, false);
  sums_of_columns(dlogits, p.images, e.c, begin, end, e.out(p.db2, 0, 0));
}

// Rows of dw1 and db1, one per squeezed channel.
template <class A>
void excite_backward_w1(const ExciteParams& p, int64_t begin, int64_t end) {
  const ExciteView<A> e{p};
  const A* const dhidden = e.in(p.dhidden, 0, 0);
  accumulate_outer(dhidden + begin, e.s, end - begin, e.in(p.pooled, 0, 0), e.c, e.c, p.images,
                   e.out(p.dw1, begin, e.c), e.c, false);
  sums_of_columns(dhidden, p.images, e.s, begin, end, e.out(p.db1, 0, 0));
}

// Entry points: dtype to template parameter.

inline void excite_forward_step(const ExciteParams& p, int64_t begin, int64_t end) {
  dispatch_accumulator(p.dtype, [&](auto a) { excite_images<typename decltype(a)::type>(p, begin, end); });
}
inline void excite_scale_step(const ExciteParams& p, int64_t begin, int64_t end) {
  dispatch_accumulator(p.dtype, [&](auto a) { excite_scale_images<typename decltype(a)::type>(p, begin, end); });
}
inline void excite_images_step(const ExciteParams& p, int64_t begin, int64_t end) {
  dispatch_accumulator(p.dtype, [&](auto a) { excite_backward_images<typename decltype(a)::type>(p, begin, end); });
}
inline void excite_w2_step(const ExciteParams& p, int64_t begin, int64_t end) {
  dispatch_accumulator(p.dtype, [&](auto a) { excite_backward_w2<typename decltype(a)::type>(p, begin, end); });
}
inline void excite_w1_step(const ExciteParams& p, int64_t begin, int64_t end) {
  dispatch_accumulator(p.dtype, [&](auto a) { excite_backward_w1<typename decltype(a)::type>(p, begin, end); });
}
