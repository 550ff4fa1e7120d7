// Squeeze-and-excite's two layers (cpu.h). Included per instruction set by foreach_capability.h.

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

// out[:] = Σ_i factors[i · step] · matrix[i, :] over padded rows; returns Σ_i factors[i · step].
template <class A>
A vector_times_matrix(const A* factors, int64_t step, const A* matrix, int64_t rows, int64_t row, A* out) {
  constexpr int size = Vec<A>::size;
  int64_t k = 0;
  const auto run = [&](auto vectors) {
    constexpr int R = vectors();
    Vec<A> sums[R];
    for (int r = 0; r < R; ++r) sums[r] = Vec<A>::zero();
    for (int64_t i = 0; i < rows; ++i) {
      const Vec<A> factor = Vec<A>::broadcast(factors[i * step]);
      for (int r = 0; r < R; ++r) sums[r] += factor * load(matrix + i * row + k + r * size, AllLanes{});
    }
    for (int r = 0; r < R; ++r) store(out + k + r * size, sums[r], AllLanes{});
    k += R * size;
  };
  while (k + 8 * size <= row) run(Constant<8>{});
  while (k + 2 * size <= row) run(Constant<2>{});
  while (k < row) run(Constant<1>{});
  A sum = 0;
  for (int64_t i = 0; i < rows; ++i) sum += factors[i * step];
  return sum;
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

template <class A>
void excite_images(const ExciteParams& params, int64_t begin, int64_t end) {
  const ExciteView<A> e{params};
  const ExciteParams& p = params;
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
  for (int64_t n = begin; n < end; ++n) activate_row(p.gate, e.in(p.logits, n, e.c), e.out(p.scale, n, e.c), e.c);
}

template <class A>
void excite_backward_images(const ExciteParams& p, int64_t begin, int64_t end) {
  const ExciteView<A> e{p};
  for (int64_t n = begin; n < end; ++n) {
    A* const dlogits = e.out(p.dlogits, n, e.c);
    A* const dhidden = e.out(p.dhidden, n, e.s);
    A* const dpooled = e.out(p.dpooled, n, e.c);
    derive_row(p.gate, e.in(p.logits, n, e.c), e.in(p.dscale, n, e.c), dlogits, e.c);
    activate_row(p.activation, e.in(p.hidden, n, e.s), e.out(p.activated, n, e.s), e.s);
    vector_times_matrix(dlogits, 1, e.in(p.w2, 0, 0), p.channels, e.s, dhidden);
    derive_row(p.activation, e.in(p.hidden, n, e.s), dhidden, dhidden, e.s);
    vector_times_matrix(dhidden, 1, e.in(p.w1, 0, 0), p.squeezed, e.c, dpooled);
  }
}

// Rows of dw2 and db2, one per channel.
template <class A>
void excite_backward_w2(const ExciteParams& p, int64_t begin, int64_t end) {
  const ExciteView<A> e{p};
  for (int64_t i = begin; i < end; ++i) {
    e.out(p.db2, 0, 0)[i] = vector_times_matrix(e.in(p.dlogits, 0, 0) + i, e.c, e.in(p.activated, 0, 0), p.images, e.s,
                                                e.out(p.dw2, i, e.s));
  }
}

// Rows of dw1 and db1, one per squeezed channel.
template <class A>
void excite_backward_w1(const ExciteParams& p, int64_t begin, int64_t end) {
  const ExciteView<A> e{p};
  for (int64_t i = begin; i < end; ++i) {
    e.out(p.db1, 0, 0)[i] =
        vector_times_matrix(e.in(p.dhidden, 0, 0) + i, e.s, e.in(p.pooled, 0, 0), p.images, e.c, e.out(p.dw1, i, e.c));
  }
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
