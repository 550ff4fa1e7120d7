// The streaming passes of passes.h, over work items [begin, end). Included per instruction set by foreach_capability.h.

template <class T, Layout L>
void statistics_columns(const StatisticsParams& p, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const int64_t row = p.extent.row();
  for_each_column<A, L>(p.extent, begin, end, [&](const Column<A, L>& column) {
    auto moments = RunningMoments<A>::none();
    accumulate_moments<T, L>(moments, static_cast<const T*>(p.x), column);
    const int64_t at = column.part * row;
    store_channels<L>(static_cast<A*>(p.mean) + at, column.channel, moments.mean);
    store_channels<L>(static_cast<A*>(p.m2) + at, column.channel, moments.m2);
  });
}

template <class T, Layout L, Activation Act>
void normalize_columns(const NormalizeParams& p, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const T* const x = static_cast<const T*>(p.x);
  const T* const residual = static_cast<const T*>(p.residual);
  const A* const factors = static_cast<const A*>(p.factor);
  T* const out = static_cast<T*>(p.out);
  for_each_column<A, L>(p.extent, begin, end, [&](const Column<A, L>& column) {
    const auto affine = column_affine<L, A>(p.affine, column.channel);
    const A* const row = factors ? factors + column.image * p.extent.row() : nullptr;
    const Vec<A> factor = channel_values_or<L>(row, column.channel, A(1));
    if (residual) {
      column.for_each_vector([&](int64_t i, auto lanes) {
        const Vec<A> z = activate<Act>(affine.transformed(load(x + i, lanes)));
        store(out + i, z * factor + load(residual + i, lanes), lanes);
      });
    } else {
      column.for_each_vector([&](int64_t i, auto lanes) {
        store(out + i, activate<Act>(affine.transformed(load(x + i, lanes))) * factor, lanes);
      });
    }
  });
}

template <class T, Layout L, Activation Act>
void forward_sums_columns(const ForwardSumsParams& p, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const T* const x = static_cast<const T*>(p.x);
  for_each_column<A, L>(p.extent, begin, end, [&](const Column<A, L>& column) {
    const auto affine = column_affine<L, A>(p.affine, column.channel);
    const int64_t row = column.part * p.extent.row();
    Vec<A> z_sum = Vec<A>::zero(), slope_sum = z_sum, slope_x_sum = z_sum;
    // Lanes beyond the end hold zeros of x, not of act(v): they are masked out of every sum.
    if (p.slope_sum) {
      column.for_each_vector([&](int64_t i, auto lanes) {
        const Vec<A> value = load(x + i, lanes);
        const auto z = activate_with_derivative<Act>(affine.transformed(value));
        z_sum += fill_lanes(z.value, Vec<A>::zero(), lanes);
        slope_sum += fill_lanes(z.derivative, Vec<A>::zero(), lanes);
        slope_x_sum += fill_lanes(z.derivative * affine.normalized(value), Vec<A>::zero(), lanes);
      });
      store_sum<L>(static_cast<A*>(p.slope_sum) + row, column.channel, slope_sum);
      store_sum<L>(static_cast<A*>(p.slope_x_sum) + row, column.channel, slope_x_sum);
    } else {
      column.for_each_vector([&](int64_t i, auto lanes) {
        z_sum += fill_lanes(activate<Act>(affine.transformed(load(x + i, lanes))), Vec<A>::zero(), lanes);
      });
    }
    store_sum<L>(static_cast<A*>(p.z_sum) + row, column.channel, z_sum);
  });
}

template <class T, Layout L, Activation Act>
void backward_sums_columns(const BackwardSumsParams& p, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const T* const grad = static_cast<const T*>(p.grad);
  const T* const x = static_cast<const T*>(p.x);
  for_each_column<A, L>(p.extent, begin, end, [&](const Column<A, L>& column) {
    const auto affine = column_affine<L, A>(p.affine, column.channel);
    const int64_t row = column.part * p.extent.row();
    Vec<A> gz_sum = Vec<A>::zero(), slope_sum = gz_sum, slope_x_sum = gz_sum;
    // Lanes beyond the end hold zeros of grad, which every term has as a factor.
    column.for_each_vector([&](int64_t i, auto lanes) {
      const Vec<A> value = load(x + i, lanes), g = load(grad + i, lanes);
      const auto z = activate_with_derivative<Act>(affine.transformed(value));
      gz_sum += g * z.value;
      slope_sum += g * z.derivative;
      slope_x_sum += g * z.derivative * affine.normalized(value);
    });
    if (p.gz_sum) store_sum<L>(static_cast<A*>(p.gz_sum) + row, column.channel, gz_sum);
    store_sum<L>(static_cast<A*>(p.slope_sum) + row, column.channel, slope_sum);
    store_sum<L>(static_cast<A*>(p.slope_x_sum) + row, column.channel, slope_x_sum);
  });
}

template <class T, Layout L, Activation Act>
void input_gradient_columns(const InputGradientParams& p, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const T* const grad = static_cast<const T*>(p.grad);
  const T* const x = static_cast<const T*>(p.x);
  T* const dx = static_cast<T*>(p.dx);
  for_each_column<A, L>(p.extent, begin, end, [&](const Column<A, L>& column) {
    const auto gradient = column_gradient<L, A>(p.affine, p.gradient, column.image * p.extent.row(), column.channel);
    column.for_each_vector([&](int64_t i, auto lanes) {
      store(dx + i, gradient.template through<Act>(load(grad + i, lanes), load(x + i, lanes)), lanes);
    });
  });
}

// Entry points: dtype, layout and activation to template parameters.

inline void statistics(const StatisticsParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.extent.dtype, [&](auto dtype) {
    dispatch_layout(p.extent.layout,
                    [&](auto layout) { statistics_columns<typename decltype(dtype)::type, layout()>(p, begin, end); });
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
    normalize_columns<typename decltype(dtype)::type, layout(), activation()>(p, begin, end);
  });
}

inline void forward_sums(const ForwardSumsParams& p, int64_t begin, int64_t end) {
  dispatch_pass(p, [&](auto dtype, auto layout, auto activation) {
    forward_sums_columns<typename decltype(dtype)::type, layout(), activation()>(p, begin, end);
  });
}

inline void backward_sums(const BackwardSumsParams& p, int64_t begin, int64_t end) {
  dispatch_pass(p, [&](auto dtype, auto layout, auto activation) {
    backward_sums_columns<typename decltype(dtype)::type, layout(), activation()>(p, begin, end);
  });
}

inline void input_gradient(const InputGradientParams& p, int64_t begin, int64_t end) {
  dispatch_pass(p, [&](auto dtype, auto layout, auto activation) {
    input_gradient_columns<typename decltype(dtype)::type, layout(), activation()>(p, begin, end);
  });
}
