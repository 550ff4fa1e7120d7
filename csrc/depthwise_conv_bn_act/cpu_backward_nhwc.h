// One unit of the backward pass in channels_last: a strip of input rows of a group of images, for one slice. For every
// input row: dy of the output rows it meets is in a ring (computed once from grad and y), its activation a and act'(v1)
// are computed once, and both the input gradient and the weight gradient come from them. Included per instruction set.

// One row of dy, one row of a, one row of the kernel, for one vector of channels and stride 1:
// da[x] += Σ_j w[j] · dy[x − j] and dw[j] += Σ_x a[x] · dy[x − j]. A value of dy is loaded once for both.
template <int K, class V, class A>
void accumulate_row_gradients(const A* dy, const A* a, A* da, int64_t width, int64_t pixel, const A* weight,
                              int64_t weight_step, A* dweight, int64_t dweight_step) {
  V w[K], dw[K];
  for (int j = 0; j < K; ++j) {
    w[j] = load(weight + j * weight_step, AllLanes{});
    dw[j] = load(dweight + j * dweight_step, AllLanes{});
  }
  int64_t x = 0;
  const auto run = [&](auto pixels) {
    constexpr int R = pixels();
    V a_here[R], da_here[R];
    for (int r = 0; r < R; ++r) {
      a_here[r] = load(a + (x + r) * pixel, AllLanes{});
      da_here[r] = load(da + (x + r) * pixel, AllLanes{});
    }
#pragma GCC unroll 16
    for (int q = 1 - K; q < R; ++q) {
      const V g = load(dy + (x + q) * pixel, AllLanes{});
#pragma GCC unroll 8
      for (int j = 0; j < K; ++j) {
        const int r = q + j;
        if (r < 0 || r >= R) continue;
        da_here[r] += w[j] * g;
        dw[j] += a_here[r] * g;
      }
    }
    for (int r = 0; r < R; ++r) store(da + (x + r) * pixel, da_here[r], AllLanes{});
    x += R;
  };
  while (x + 4 <= width) run(Constant<4>{});
  if (x + 2 <= width) run(Constant<2>{});
  if (x + 1 <= width) run(Constant<1>{});
  for (int j = 0; j < K; ++j) store(dweight + j * dweight_step, dw[j], AllLanes{});
}

template <class T>
class BackwardSlice {
  using A = accumulator_t<T>;
  using V = Vec<A>;

 public:
  explicit BackwardSlice(const DepthwiseBackwardParams& params)
      : p(params),
        s(params.shape),
        channel_row(padded_channels(s.channels)),
        pixel(Slice<A>::pixel_of(params.units)),
        margin(s.kernel_size - 1),
        target(static_cast<T*>(p.dx), s.images * s.channels * s.pixels(), s.channels),
        dy_size((margin + std::max(s.out_width, (s.width - 1 + s.left) / s.stride + 1)) * pixel),
        ring(s.kernel_size * dy_size),
        a(std::max(s.left + s.width, (s.out_width - 1) * s.stride + s.kernel_size) * pixel),
        da(s.width * pixel),
        slope(p.prologue ? s.width * pixel : 0),
        dweight(s.taps() * pixel) {}

  void run(int64_t unit) {
    const int64_t part = unit / p.units.blocks;
    const auto slice = Slice<A>::make(s.channels, p.units, unit % p.units.blocks);
    const int64_t first_image = part / p.units.strips * p.units.images_per_group;
    const int64_t last_image = std::min(first_image + p.units.images_per_group, s.images);
    const int64_t first = part % p.units.strips * p.units.rows_per_strip;
    const int64_t last = std::min(first + p.units.rows_per_strip, s.height);
    std::memset(dweight.data(), 0, dweight.size() * sizeof(A));
    for (int v = 0; v < slice.vectors(); ++v) {
      dbeta[v] = dgamma[v] = V::zero();
      if (p.prologue) affine1[v] = column_affine<Layout::nhwc, A>(p.affine1, slice.channel_of(v));
    }
    for (int64_t image = first_image; image < last_image; ++image) {
      for (int v = 0; v < slice.vectors(); ++v) {
        gradient[v] = column_gradient<Layout::nhwc, A>(p.affine2, p.gradient, image * channel_row, slice.channel_of(v));
      }
      int64_t next_out_row = 0;
      for (int64_t y = first; y < last; ++y) {
        const OutRows rows = out_rows(y);
        for (next_out_row = std::max(next_out_row, rows.first); next_out_row < rows.last; ++next_out_row) {
          stage_dy(slice, image, next_out_row);
        }
        stage_input(slice, image, y);
        for (int v = 0; v < slice.vectors(); ++v) {
          if (!target.past_caches()) slice.prefetch(dx_row(slice, image, y), s.width, v);
          convolve(slice, rows, y, v);
        }
        write(slice, image, y);
      }
    }
    write_parts(slice, part);
  }

 private:
  struct OutRows {
    int64_t first, last;  // output rows whose window holds the input row, clipped to the tensor
  };

  OutRows out_rows(int64_t y) const {
    const int64_t lowest = y + s.top - (s.kernel_size - 1);
    return {lowest <= 0 ? 0 : (lowest + s.stride - 1) / s.stride, std::min((y + s.top) / s.stride + 1, s.out_height)};
  }

  T* dx_row(const Slice<A>& slice, int64_t image, int64_t y) const {
    return static_cast<T*>(p.dx) + slice.row(image, y, s.height, s.width);
  }
  A* slot(int64_t out_y) { return ring.data() + out_y % s.kernel_size * dy_size + margin * pixel; }

  void stage_dy(const Slice<A>& slice, int64_t image, int64_t out_y) {
    const int64_t start = slice.row(image, out_y, s.out_height, s.out_width);
    dispatch_batch_norm_activation(p.activation, [&](auto activation) {
      stage_dy<activation()>(slice, static_cast<const T*>(p.grad) + start, static_cast<const T*>(p.y) + start,
                             slot(out_y));
    });
  }
  template <Activation Act>
  void stage_dy(const Slice<A>& slice, const T* grad, const T* y, A* target) {
    const int64_t next = s.out_width * s.channels;
    slice.for_each_in_row(s.out_width, [&](int v, int64_t from, int64_t to, auto lanes) {
      prefetch_line(grad + next + from);
      prefetch_line(y + next + from);
      const V dy = gradient[v].template through<Act>(load(grad + from, lanes), load(y + from, lanes));
      store(target + to, dy, AllLanes{});
    });
  }

  void stage_input(const Slice<A>& slice, int64_t image, int64_t y) {
    const T* const source = static_cast<const T*>(p.x) + slice.row(image, y, s.height, s.width);
    A* const target = a.data() + s.left * pixel;
    if (p.prologue) {
      dispatch_batch_norm_activation(
          p.activation, [&](auto activation) { stage_activated<activation()>(slice, source, target, slope.data()); });
    } else {
      const T* const next = source + s.width * s.channels;
      slice.for_each_in_row(s.width, [&](int, int64_t from, int64_t to, auto lanes) {
        prefetch_line(next + from);
        store(target + to, load(source + from, lanes), AllLanes{});
      });
    }
  }
  template <Activation Act>
  void stage_activated(const Slice<A>& slice, const T* source, A* values, A* slopes) {
    const T* const next = source + s.width * s.channels;
    slice.for_each_in_row(s.width, [&](int v, int64_t from, int64_t to, auto lanes) {
      prefetch_line(next + from);
      const auto activated = activate_with_derivative<Act>(affine1[v].transformed(load(source + from, lanes)));
      store(values + to, activated.value, AllLanes{});
      store(slopes + to, activated.derivative, AllLanes{});
    });
  }

  void convolve(const Slice<A>& slice, const OutRows& rows, int64_t y, int v) {
    const auto with_kernel_size = [&](auto kernel_size) {
      if (s.stride == 1) {
        both_gradients<kernel_size()>(slice, rows, y, v);
      } else {
        input_gradient(slice, rows, y, v);
        weight_gradient<kernel_size()>(rows, y, v);
      }
    };
    if (s.kernel_size == 3) with_kernel_size(Constant<3>{});
    if (s.kernel_size == 5) with_kernel_size(Constant<5>{});
    if (s.kernel_size == 7) with_kernel_size(Constant<7>{});
  }

  const A* weight(const Slice<A>& slice, int64_t tap) const {
    return static_cast<const A*>(p.weight) + tap * channel_row + slice.first;
  }

  template <int K>
  void both_gradients(const Slice<A>& slice, const OutRows& rows, int64_t y, int v) {
    const int64_t shift = v * V::size;
    for (int64_t x = 0; x < s.width; ++x) store(da.data() + x * pixel + shift, V::zero(), AllLanes{});
    for (int64_t out_y = rows.first; out_y < rows.last; ++out_y) {
      const int64_t i = y + s.top - out_y;
      accumulate_row_gradients<K, V>(slot(out_y) + s.left * pixel + shift, a.data() + s.left * pixel + shift,
                                     da.data() + shift, s.width, pixel, weight(slice, i * K) + shift, channel_row,
                                     dweight.data() + i * K * pixel + shift, pixel);
    }
  }

  // da[x] = Σ_{i,j} w[i, j] · dy[(y + top − i) / 2, (x + left − j) / 2] where both divide: the even and the odd x have
  // taps of their own.
  void input_gradient(const Slice<A>& slice, const OutRows& rows, int64_t y, int v) {
    const int64_t shift = v * V::size;
    for (int phase = 0; phase < s.stride; ++phase) {
      Tap<A> taps[49];
      int count = 0;
      for (int64_t out_y = rows.first; out_y < rows.last; ++out_y) {
        const int64_t i = y + s.top - out_y * s.stride;
        for (int j = (phase + s.left) % s.stride; j < s.kernel_size; j += s.stride) {
          const int64_t out_x = (phase + s.left - j) / s.stride;  // exact, and at least −margin
          taps[count++] = {slot(out_y) + out_x * pixel, weight(slice, i * s.kernel_size + j)};
        }
      }
      apply_taps(taps, count, shift, (s.width - phase + s.stride - 1) / s.stride, pixel,
                 da.data() + phase * pixel + shift, s.stride * pixel);
    }
  }

  template <int K>
  void weight_gradient(const OutRows& rows, int64_t y, int v) {
    const int64_t shift = v * V::size;
    for (int64_t out_y = rows.first; out_y < rows.last; ++out_y) {
      const int64_t i = y + s.top - out_y * s.stride;
      accumulate_weight_gradient<K>(
          slot(out_y) + shift, pixel, a.data() + shift, [&](int k) { return k * pixel; }, s.stride * pixel, s.out_width,
          dweight.data() + i * K * pixel + shift, pixel);
    }
  }

  void write(const Slice<A>& slice, int64_t image, int64_t y) {
    const int64_t start = slice.row(image, y, s.height, s.width);
    const T* const x = static_cast<const T*>(p.x) + start;
    T* const dx = dx_row(slice, image, y);
    const A *const gradients = da.data(), *const slopes = slope.data();
    if (p.prologue) {
      slice.for_each_in_row(s.width, [&](int v, int64_t to, int64_t from, auto lanes) {
        const V dv = load(gradients + from, AllLanes{}) * load(slopes + from, AllLanes{});
        target.store(dx + to, dv, lanes);
        dbeta[v] += dv;
        dgamma[v] += dv * affine1[v].normalized(load(x + to, lanes));
      });
    } else {
      slice.for_each_in_row(s.width, [&](int, int64_t to, int64_t from, auto lanes) {
        target.store(dx + to, load(gradients + from, AllLanes{}), lanes);
      });
    }
  }

  void write_parts(const Slice<A>& slice, int64_t part) {
    for (int v = 0; v < slice.vectors(); ++v) {
      const int64_t channel = slice.channel_of(v);
      for (int t = 0; t < s.taps(); ++t) {
        A* const row = static_cast<A*>(p.dweight) + (part * s.taps() + t) * channel_row;
        store(row + channel, load(dweight.data() + t * pixel + v * V::size, AllLanes{}), AllLanes{});
      }
      if (!p.prologue) continue;
      store(static_cast<A*>(p.dbeta1) + part * channel_row + channel, dbeta[v], AllLanes{});
      store(static_cast<A*>(p.dgamma1) + part * channel_row + channel, dgamma[v], AllLanes{});
    }
  }

  const DepthwiseBackwardParams& p;
  const DepthwiseShape& s;
  const int64_t channel_row, pixel;
  const int64_t margin;  // zeros before a dy row, in pixels
  const Target<T> target;
  const int64_t dy_size;
  Buffer<A> ring, a, da, slope, dweight;
  ColumnAffine<A> affine1[Slice<A>::max_vectors];
  ColumnGradient<A> gradient[Slice<A>::max_vectors];
  V dbeta[Slice<A>::max_vectors], dgamma[Slice<A>::max_vectors];
};
