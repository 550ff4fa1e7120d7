// One unit of the backward pass in NCHW: a strip of input rows of a group of images, for one channel. For every input
// row: dy of the output rows it meets is in a ring (computed once from grad and y), its activation a and act'(v1) are
// computed once, and both the input gradient and the weight gradient come from them. Included per instruction set.

template <class T>
class BackwardPlane {
  using A = accumulator_t<T>;
  using V = Vec<A>;

 public:
  explicit BackwardPlane(const DepthwiseBackwardParams& params)
      : p(params),
        s(params.shape),
        channel_row(padded_channels(s.channels)),
        positions(s.left + std::max(s.width, s.out_width * s.stride) + s.kernel_size + s.stride * V::size),
        padded(PaddedRow<A>::make(positions, s.stride)),
        margin(s.kernel_size - 1),
        dy_size(margin + std::max(s.out_width, (s.width + s.left) / s.stride + 1) + 3 * V::size),
        in_size(s.width + 2 * V::size),
        ring(s.kernel_size * dy_size),
        a(padded.size(positions)),
        contiguous(positions + V::size),
        da(in_size + V::size),
        da_phases(s.stride * (in_size + V::size)),
        slope(in_size),
        normalized(in_size),
        weights(s.taps() * V::size),
        dweight(s.taps() * V::size) {}

  void run(int64_t unit) {
    const int64_t part = unit / p.units.blocks, channel = unit % p.units.blocks;
    broadcast_weights(static_cast<const A*>(p.weight), channel_row, s.taps(), channel, weights.data());
    const int64_t first_image = part / p.units.strips * p.units.images_per_group;
    const int64_t last_image = std::min(first_image + p.units.images_per_group, s.images);
    const int64_t first = part % p.units.strips * p.units.rows_per_strip;
    const int64_t last = std::min(first + p.units.rows_per_strip, s.height);
    std::memset(dweight.data(), 0, dweight.size() * sizeof(A));
    dbeta = dgamma = V::zero();
    for (int64_t image = first_image; image < last_image; ++image) {
      int64_t next_out_row = 0;
      for (int64_t y = first; y < last; ++y) {
        const OutRows rows = out_rows(y);
        for (next_out_row = std::max(next_out_row, rows.first); next_out_row < rows.last; ++next_out_row) {
          stage_dy(channel, image, next_out_row);
        }
        const int64_t start = ((image * s.channels + channel) * s.height + y) * s.width;
        stage_input(channel, start);
        input_gradient_row(rows, y);
        weight_gradient_row(rows, y);
        write(start);
      }
    }
    write_parts(channel, part);
  }

 private:
  struct OutRows {
    int64_t first, last;  // output rows whose window holds the input row, clipped to the tensor
  };

  OutRows out_rows(int64_t y) const {
    const int64_t lowest = y + s.top - (s.kernel_size - 1);
    return {lowest <= 0 ? 0 : (lowest + s.stride - 1) / s.stride, std::min((y + s.top) / s.stride + 1, s.out_height)};
  }

  A* slot(int64_t out_y) { return ring.data() + out_y % s.kernel_size * dy_size + margin; }

  void stage_dy(int64_t channel, int64_t image, int64_t out_y) {
    const int64_t start = ((image * s.channels + channel) * s.out_height + out_y) * s.out_width;
    const T* const grad = static_cast<const T*>(p.grad) + start;
    const T* const y = static_cast<const T*>(p.y) + start;
    A* const target = slot(out_y);
    const auto gradient = column_gradient<Layout::nchw, A>(p.affine2, p.gradient, image * channel_row, channel);
    dispatch_batch_norm_activation(p.activation, [&](auto activation) {
      for_each_in_row<A>(s.out_width, [&](int64_t x, auto lanes) {
        store(target + x, gradient.template through<activation()>(load(grad + x, lanes), load(y + x, lanes)), lanes);
      });
    });
  }

  void stage_input(int64_t channel, int64_t start) {
    const T* const source = static_cast<const T*>(p.x) + start;
    A* const target = (padded.split() ? contiguous.data() : a.data()) + s.left;
    if (!p.prologue) {
      for_each_in_row<A>(s.width, [&](int64_t x, auto lanes) { store(target + x, load(source + x, lanes), lanes); });
    } else {
      const auto affine = column_affine<Layout::nchw, A>(p.affine1, channel);
      dispatch_batch_norm_activation(p.activation, [&](auto activation) {
        for_each_in_row<A>(s.width, [&](int64_t x, auto lanes) {
          const V value = load(source + x, lanes);
          const auto activated = activate_with_derivative<activation()>(affine.transformed(value));
          store(target + x, activated.value, lanes);
          store(slope.data() + x, activated.derivative, lanes);
          store(normalized.data() + x, affine.normalized(value), lanes);
        });
      });
    }
    if (padded.split()) padded.split_from(contiguous.data(), positions, a.data());
  }

  // da[x] = Σ_{i,j} w[i, j] · dy[(y + top − i) / stride, (x + left − j) / stride] where both divide. With stride 2 the
  // even and the odd x have taps of their own.
  void input_gradient_row(const OutRows& rows, int64_t y) {
    for (int phase = 0; phase < s.stride; ++phase) {
      Tap<A> taps[49];
      int count = 0;
      for (int64_t out_y = rows.first; out_y < rows.last; ++out_y) {
        const int64_t i = y + s.top - out_y * s.stride;
        for (int j = (phase + s.left) % s.stride; j < s.kernel_size; j += s.stride) {
          const int64_t out_x = (phase + s.left - j) / s.stride;  // exact, and at least −margin
          taps[count++] = {slot(out_y) + out_x, weights.data() + (i * s.kernel_size + j) * V::size};
        }
      }
      const int64_t outputs = (s.width - phase + s.stride - 1) / s.stride;
      A* const out = s.stride == 1 ? da.data() : da_phases.data() + phase * (in_size + V::size);
      apply_taps(taps, count, 0, row_vectors<A>(outputs), V::size, out, V::size);
      if (s.stride == 1) return;
      for (int64_t k = 0; k < outputs; ++k) da[2 * k + phase] = out[k];
    }
  }

  void weight_gradient_row(const OutRows& rows, int64_t y) {
    for (int64_t out_y = rows.first; out_y < rows.last; ++out_y) {
      const int64_t i = y + s.top - out_y * s.stride;
      const auto run = [&](auto kernel_size) {
        accumulate_weight_gradient<kernel_size()>(
            slot(out_y), V::size, a.data(), [&](int k) { return padded.tap(k); }, V::size, row_vectors<A>(s.out_width),
            dweight.data() + i * s.kernel_size * V::size, V::size);
      };
      if (s.kernel_size == 3) run(Constant<3>{});
      if (s.kernel_size == 5) run(Constant<5>{});
      if (s.kernel_size == 7) run(Constant<7>{});
    }
  }

  void write(int64_t start) {
    T* const dx = static_cast<T*>(p.dx) + start;
    for_each_in_row<A>(s.width, [&](int64_t x, auto lanes) {
      V dv = load(da.data() + x, AllLanes{});
      if (p.prologue) {
        dv = dv * load(slope.data() + x, AllLanes{});
        dbeta += fill_lanes(dv, V::zero(), lanes);
        dgamma += fill_lanes(dv * load(normalized.data() + x, AllLanes{}), V::zero(), lanes);
      }
      store(dx + x, dv, lanes);
    });
  }

  void write_parts(int64_t channel, int64_t part) {
    for (int t = 0; t < s.taps(); ++t) {
      static_cast<A*>(p.dweight)[(part * s.taps() + t) * channel_row + channel] =
          sum_of_lanes(load(dweight.data() + t * V::size, AllLanes{}));
    }
    if (!p.prologue) return;
    static_cast<A*>(p.dbeta1)[part * channel_row + channel] = sum_of_lanes(dbeta);
    static_cast<A*>(p.dgamma1)[part * channel_row + channel] = sum_of_lanes(dgamma);
  }

  const DepthwiseBackwardParams& p;
  const DepthwiseShape& s;
  const int64_t channel_row;
  const int64_t positions;  // of a padded input row, as far as the widest vector of taps reaches
  const PaddedRow<A> padded;
  const int64_t margin;  // zeros before a dy row
  const int64_t dy_size, in_size;
  Buffer<A> ring, a, contiguous, da, da_phases, slope, normalized, weights, dweight;
  V dbeta, dgamma;
};
