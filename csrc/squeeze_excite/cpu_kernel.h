// Squeeze-and-excite's two layers (cpu.h). Included per instruction set by foreach_capability.h.

// Σ a·b over zero-padded rows.
template <class A>
EK_INLINE A dot(const A* a, const A* b, int64_t size) {
  Vec<A> sum = Vec<A>::zero();
  for (int64_t i = 0; i < size; i += Vec<A>::size) sum += load(a + i, AllLanes{}) * load(b + i, AllLanes{});
  return sum_of_lanes(sum);
}

// y += factor · x over padded rows.
template <class A>
EK_INLINE void add_scaled(A* y, A factor, const A* x, int64_t size) {
  const Vec<A> f = Vec<A>::broadcast(factor);
  for (int64_t i = 0; i < size; i += Vec<A>::size) {
    store(y + i, load(y + i, AllLanes{}) + f * load(x + i, AllLanes{}), AllLanes{});
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

template <class A>
void excite_images(const ExciteParams& params, int64_t begin, int64_t end) {
  const ExciteView<A> e{params};
  const ExciteParams& p = params;
  Buffer<A> activated(e.s);
  for (int64_t n = begin; n < end; ++n) {
    const A* const pooled = e.in(p.pooled, n, e.c);
    A* const hidden = e.out(p.hidden, n, e.s);
    A* const logits = e.out(p.logits, n, e.c);
    for (int64_t i = 0; i < p.squeezed; ++i) hidden[i] = dot(e.in(p.w1, i, e.c), pooled, e.c) + e.in(p.b1, 0, 0)[i];
    activate_row(p.activation, hidden, activated.data(), e.s);
    for (int64_t i = 0; i < p.channels; ++i) {
      logits[i] = dot(e.in(p.w2, i, e.s), activated.data(), e.s) + e.in(p.b2, 0, 0)[i];
    }
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
    for (int64_t i = 0; i < p.channels; ++i) add_scaled(dhidden, dlogits[i], e.in(p.w2, i, e.s), e.s);
    derive_row(p.activation, e.in(p.hidden, n, e.s), dhidden, dhidden, e.s);
    for (int64_t i = 0; i < p.squeezed; ++i) add_scaled(dpooled, dhidden[i], e.in(p.w1, i, e.c), e.c);
  }
}

// Rows of dw2 and db2, one per channel.
template <class A>
void excite_backward_w2(const ExciteParams& p, int64_t begin, int64_t end) {
  const ExciteView<A> e{p};
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t n = 0; n < p.images; ++n) {
      const A g = e.in(p.dlogits, n, e.c)[i];
      add_scaled(e.out(p.dw2, i, e.s), g, e.in(p.activated, n, e.s), e.s);
      e.out(p.db2, 0, 0)[i] += g;
    }
  }
}

// Rows of dw1 and db1, one per squeezed channel.
template <class A>
void excite_backward_w1(const ExciteParams& p, int64_t begin, int64_t end) {
  const ExciteView<A> e{p};
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t n = 0; n < p.images; ++n) {
      const A g = e.in(p.dhidden, n, e.s)[i];
      add_scaled(e.out(p.dw1, i, e.c), g, e.in(p.pooled, n, e.c), e.c);
      e.out(p.db1, 0, 0)[i] += g;
    }
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
