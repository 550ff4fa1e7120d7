// The streaming passes of passes.h, over work items [begin, end). Included per instruction set by foreach_capability.h.

// Sums per channel vector of a panel, each added to its place when it is complete.
template <class A, Layout L>
struct PanelSums {
  Vec<A> sums[Panel<A, L>::max_vectors];

  EK_INLINE void clear(int count) {
    for (int v = 0; v < count; ++v) sums[v] = Vec<A>::zero();
  }
  EK_INLINE Vec<A>& operator[](int v) { return sums[v]; }
  EK_INLINE void store(void* rows, int64_t row, const Panel<A, L>& panel) {
    if (rows == nullptr) return;
    A* const target = static_cast<A*>(rows) + panel.part * row;
    for (int v = 0; v < panel.vectors(); ++v) store_sum<L>(target, panel.channel_of(v), sums[v]);
  }
};

// Constants per channel vector of a panel, side by side.
template <class Values, class A, Layout L>
struct PanelValues {
  Values values[Panel<A, L>::max_vectors];

  template <class F>
  EK_INLINE void set(const Panel<A, L>& panel, F value_of) {
    for (int v = 0; v < panel.vectors(); ++v) values[v] = value_of(panel.channel_of(v));
  }
  EK_INLINE const Values& operator[](int v) const { return values[v]; }
};

// Means and M2 in tiles that stay in L1, so that each is centred on its own mean: no E[x²] − E[x]².
template <class T, Layout L>
void statistics_panels(const StatisticsParams& p, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  using V = Vec<A>;
  constexpr int64_t kTile = L == Layout::nhwc ? 32 : 64;
  const T* const x = static_cast<const T*>(p.x);
  for_each_panel<A, L>(p.extent, begin, end, [&](const Panel<A, L>& panel) {
    const int vectors = panel.vectors();
    RunningMoments<A> moments[Panel<A, L>::max_vectors];
    for (int v = 0; v < vectors; ++v) moments[v] = RunningMoments<A>::none();
    PanelSums<A, L> means, deviations, m2s;
    int64_t first = 0;
    do {
      const int64_t last = std::min(first + kTile, panel.count);
      const int64_t elements = panel.elements_per_channel(first, last);
      const V per_element = V::broadcast(A(1) / A(elements));
      means.clear(vectors);
      panel.for_each_vector(first, last, [&](int v, int64_t i, auto lanes) { means[v] += load(x + i, lanes); });
      for (int v = 0; v < vectors; ++v) means[v] = channel_sum<L>(means[v]) * per_element;
      // The mean's own rounding error, left in the sum of deviations, corrects both it and M2.
      deviations.clear(vectors);
      m2s.clear(vectors);
      panel.for_each_vector(first, last, [&](int v, int64_t i, auto lanes) {
        const V deviation = fill_lanes(load(x + i, lanes), means[v], lanes) - means[v];
        deviations[v] += deviation;
        m2s[v] += deviation * deviation;
      });
      for (int v = 0; v < vectors; ++v) {
        const V left = channel_sum<L>(deviations[v]), correction = left * per_element;
        moments[v].merge(means[v] + correction, channel_sum<L>(m2s[v]) - left * correction, elements);
      }
      first = last;
    } while (first < panel.count);
    const int64_t at = panel.part * p.extent.row();
    for (int v = 0; v < vectors; ++v) {
      store_channels<L>(static_cast<A*>(p.mean) + at, panel.channel_of(v), moments[v].mean);
      store_channels<L>(static_cast<A*>(p.m2) + at, panel.channel_of(v), moments[v].m2);
    }
  });
}

template <class T, Layout L, Activation Act>
void normalize_panels(const NormalizeParams& p, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const Stream stream(p.extent);
  struct Values {
    ColumnAffine<A> affine;
    Vec<A> factor;
  };
  const T* const x = static_cast<const T*>(p.x);
  const T* const residual = static_cast<const T*>(p.residual);
  const A* const factors = static_cast<const A*>(p.factor);
  T* const out = static_cast<T*>(p.out);
  const Target<T> target(out, p.extent.elements(), p.extent.run());
  const Stream stream_out = target.past_caches() ? Stream::none() : stream;
  PanelValues<Values, A, L> values;
  for_each_panel<A, L>(p.extent, begin, end, [&](const Panel<A, L>& panel) {
    const A* const row = factors ? factors + panel.image * p.extent.row() : nullptr;
    values.set(panel, [&](int64_t channel) {
      return Values{column_affine<L, A>(p.affine, channel), channel_values_or<L>(row, channel, A(1))};
    });
    const auto normalized = [&](int v, int64_t i, auto lanes) {
      stream.prefetch(x + i);
      stream_out.prefetch(out + i);
      return activate<Act>(values[v].affine.transformed(load(x + i, lanes))) * values[v].factor;
    };
    if (residual) {
      panel.for_each_vector([&](int v, int64_t i, auto lanes) {
        target.store(out + i, normalized(v, i, lanes) + load(residual + i, lanes), lanes);
      });
    } else {
      panel.for_each_vector(
          [&](int v, int64_t i, auto lanes) { target.store(out + i, normalized(v, i, lanes), lanes); });
    }
  });
}

template <class T, Layout L, Activation Act>
void forward_sums_panels(const ForwardSumsParams& p, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const Stream stream(p.extent);
  const T* const x = static_cast<const T*>(p.x);
  PanelValues<ColumnAffine<A>, A, L> affines;
  PanelSums<A, L> z_sums, slope_sums, slope_x_sums;
  for_each_panel<A, L>(p.extent, begin, end, [&](const Panel<A, L>& panel) {
    affines.set(panel, [&](int64_t channel) { return column_affine<L, A>(p.affine, channel); });
    for (PanelSums<A, L>* sums : {&z_sums, &slope_sums, &slope_x_sums}) sums->clear(panel.vectors());
    // Lanes beyond the end hold zeros of x, not of act(v): they are masked out of every sum.
    if (p.slope_sum) {
      panel.for_each_vector([&](int v, int64_t i, auto lanes) {
        stream.prefetch(x + i);
        const Vec<A> value = load(x + i, lanes);
        const auto z = activate_with_derivative<Act>(affines[v].transformed(value));
        z_sums[v] += fill_lanes(z.value, Vec<A>::zero(), lanes);
        slope_sums[v] += fill_lanes(z.derivative, Vec<A>::zero(), lanes);
        slope_x_sums[v] += fill_lanes(z.derivative * affines[v].normalized(value), Vec<A>::zero(), lanes);
      });
    } else {
      panel.for_each_vector([&](int v, int64_t i, auto lanes) {
        stream.prefetch(x + i);
        z_sums[v] += fill_lanes(activate<Act>(affines[v].transformed(load(x + i, lanes))), Vec<A>::zero(), lanes);
      });
    }
    z_sums.store(p.z_sum, p.extent.row(), panel);
    slope_sums.store(p.slope_sum, p.extent.row(), panel);
    slope_x_sums.store(p.slope_x_sum, p.extent.row(), panel);
  });
}

template <class T, Layout L, Activation Act>
void backward_sums_panels(const BackwardSumsParams& p, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const Stream stream(p.extent);
  const T* const grad = static_cast<const T*>(p.grad);
  const T* const x = static_cast<const T*>(p.x);
  PanelValues<ColumnAffine<A>, A, L> affines;
  PanelSums<A, L> gz_sums, slope_sums, slope_x_sums;
  for_each_panel<A, L>(p.extent, begin, end, [&](const Panel<A, L>& panel) {
    affines.set(panel, [&](int64_t channel) { return column_affine<L, A>(p.affine, channel); });
    for (PanelSums<A, L>* sums : {&gz_sums, &slope_sums, &slope_x_sums}) sums->clear(panel.vectors());
    // Lanes beyond the end hold zeros of grad, which every term has as a factor.
    if (p.slope_sum) {
      panel.for_each_vector([&](int v, int64_t i, auto lanes) {
        stream.prefetch(x + i);
        stream.prefetch(grad + i);
        const Vec<A> value = load(x + i, lanes), g = load(grad + i, lanes);
        const auto z = activate_with_derivative<Act>(affines[v].transformed(value));
        const Vec<A> slope = g * z.derivative;
        gz_sums[v] += g * z.value;
        slope_sums[v] += slope;
        slope_x_sums[v] += slope * affines[v].normalized(value);
      });
    } else {
      panel.for_each_vector([&](int v, int64_t i, auto lanes) {
        stream.prefetch(x + i);
        stream.prefetch(grad + i);
        gz_sums[v] += load(grad + i, lanes) * activate<Act>(affines[v].transformed(load(x + i, lanes)));
      });
    }
    gz_sums.store(p.gz_sum, p.extent.row(), panel);
    slope_sums.store(p.slope_sum, p.extent.row(), panel);
    slope_x_sums.store(p.slope_x_sum, p.extent.row(), panel);
  });
}

template <class T, Layout L, Activation Act>
void input_gradient_panels(const InputGradientParams& p, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const Stream stream(p.extent);
  const T* const grad = static_cast<const T*>(p.grad);
  const T* const x = static_cast<const T*>(p.x);
  T* const dx = static_cast<T*>(p.dx);
  const bool in_place = p.dx == p.grad;  // so in the cache when it is written
  const Target<T> target(dx, in_place ? 0 : p.extent.elements(), p.extent.run());
  const Stream stream_dx = in_place || target.past_caches() ? Stream::none() : stream;
  PanelValues<ColumnGradient<A>, A, L> gradients;
  for_each_panel<A, L>(p.extent, begin, end, [&](const Panel<A, L>& panel) {
    gradients.set(panel, [&](int64_t channel) {
      return column_gradient<L, A>(p.affine, p.gradient, panel.image * p.extent.row(), channel);
    });
    if (x) {
      panel.for_each_vector([&](int v, int64_t i, auto lanes) {
        stream.prefetch(x + i);
        stream.prefetch(grad + i);
        stream_dx.prefetch(dx + i);
        target.store(dx + i, gradients[v].template through<Act>(load(grad + i, lanes), load(x + i, lanes)), lanes);
      });
    } else {
      panel.for_each_vector([&](int v, int64_t i, auto lanes) {
        stream.prefetch(grad + i);
        stream_dx.prefetch(dx + i);
        target.store(dx + i, load(grad + i, lanes) * gradients[v].factor + gradients[v].offset, lanes);
      });
    }
  });
}

// Entry points: dtype, layout and activation to template parameters.

inline void statistics(const StatisticsParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.extent.dtype, [&](auto dtype) {
    dispatch_layout(p.extent.layout,
                    [&](auto layout) { statistics_panels<typename decltype(dtype)::type, layout()>(p, begin, end); });
  });
}

template <class Params, class F>
void dispatch_pass(const Params& p, F f) {
  dispatch_dtype(p.extent.dtype, [&](auto dtype) {
    dispatch_layout(p.extent.layout, [&](auto layout) {
      dispatch_batch_norm_activation(p.activation, [&](auto activation) { f(dtype, layout, activation); });
    });
  });
}

inline void normalize(const NormalizeParams& p, int64_t begin, int64_t end) {
  dispatch_pass(p, [&](auto dtype, auto layout, auto activation) {
    normalize_panels<typename decltype(dtype)::type, layout(), activation()>(p, begin, end);
  });
}

inline void forward_sums(const ForwardSumsParams& p, int64_t begin, int64_t end) {
  dispatch_pass(p, [&](auto dtype, auto layout, auto activation) {
    forward_sums_panels<typename decltype(dtype)::type, layout(), activation()>(p, begin, end);
  });
}

inline void backward_sums(const BackwardSumsParams& p, int64_t begin, int64_t end) {
  dispatch_pass(p, [&](auto dtype, auto layout, auto activation) {
    backward_sums_panels<typename decltype(dtype)::type, layout(), activation()>(p, begin, end);
  });
}

inline void input_gradient(const InputGradientParams& p, int64_t begin, int64_t end) {
  dispatch_pass(p, [&](auto dtype, auto layout, auto activation) {
    input_gradient_panels<typename decltype(dtype)::type, layout(), activation()>(p, begin, end);
  });
}
