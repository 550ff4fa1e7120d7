// One unit of the backward pass: a strip of input rows of a group of images, for one block. For every input row: dy of
// the output rows it meets is in a ring (computed once from grad and y), its activation a and act'(v1) are computed
// once, and both the input gradient and the weight gradient come from them. Included per instruction set.

template <class T, Layout L>
class BackwardUnit {
  using A = accumulator_t<T>;
  using V = Vec<A>;
  static constexpr int64_t pixel = Block<A, L>::pixel;

 public:
  explicit BackwardUnit(const DepthwiseBackwardParams& params)
      : p(params),
        s(params.shape),
        channel_row(padded_channels(s.channels)),
        positions(s.left + std::max(s.width, s.out_width * s.stride) + s.kernel_size + s.stride * V::size),
        padded(PaddedRow<A, L>::make(positions, s.stride)),
        margin(s.kernel_size - 1),
        dy_size((margin + std::max(s.out_width, (s.width + s.left) / s.stride + 1) + V::size) * pixel + 2 * V::size),
        in_size(s.width * pixel + 2 * V::size),
        ring(s.kernel_size * dy_size),
        a(padded.size(positions)),
        contiguous(positions + V::size),
        da(in_size + V::size),
        da_phases(L == Layout::nchw ? s.stride * (in_size + V::size) : 0),
        slope(in_size),
        normalized(in_size),
        weights(s.taps() * V::size),
        dweight(s.taps() * kBlock),
        dbeta(kBlock),
        dgamma(kBlock) {}

  void run(int64_t unit) {
    const int64_t part = unit / p.units.blocks;
    const auto block = Block<A, L>::make(s.channels, unit % p.units.blocks);
    const auto block_weights =
        BlockWeights<A, L>::make(static_cast<const A*>(p.weight), channel_row, s.taps(), block, weights.data());
    const int64_t first_image = part / p.units.strips * p.units.images_per_group;
    const int64_t last_image = std::min(first_image + p.units.images_per_group, s.images);
    const int64_t first = part % p.units.strips * p.units.rows_per_strip;
    const int64_t last = std::min(first + p.units.rows_per_strip, s.height);
    for (Buffer<A>* sum : {&dweight, &dbeta, &dgamma}) std::memset(sum->data(), 0, sum->size() * sizeof(A));
    for (int64_t image = first_image; image < last_image; ++image) {
      int64_t next_out_row = 0;
      for (int64_t y = first; y < last; ++y) {
        const OutRows rows = out_rows(y);
        for (next_out_row = std::max(next_out_row, rows.first); next_out_row < rows.last; ++next_out_row) {
          stage_dy(block, image, next_out_row);
        }
        stage_input(block, image, y);
        for (int v = 0; v < block.vectors(); ++v) {
          input_gradient_row(block_weights, rows, y, v);
          weight_gradient_row(rows, y, v);
        }
        write(block, image, y);
      }
    }
    write_parts(block, part);
  }

 private:
  struct OutRows {
    int64_t first, last;  // output rows whose window holds the input row, clipped to the tensor
  };

  OutRows out_rows(int64_t y) const {
    const int64_t lowest = y + s.top - (s.kernel_size - 1);
    return {lowest <= 0 ? 0 : (lowest + s.stride - 1) / s.stride, std::min((y + s.top) / s.stride + 1, s.out_height)};
  }

  A* slot(int64_t out_y) { return ring.data() + out_y % s.kernel_size * dy_size; }

  void stage_dy(const Block<A, L>& block, int64_t image, int64_t out_y) {
    const int64_t start = block.row(image, out_y, s.out_height, s.out_width);
    const T* const grad = static_cast<const T*>(p.grad) + start;
    const T* const y = static_cast<const T*>(p.y) + start;
    A* const target = slot(out_y) + margin * pixel;
    for (int v = 0; v < block.vectors(); ++v) {
      const auto gradient = column_gradient<L, A>(p.affine2, p.gradient, image * channel_row, block.channel(v));
      dispatch_batch_norm_activation(p.activation, [&](auto activation) {
        block.for_each_in_row(s.out_width, v, [&](int64_t from, int64_t to, auto lanes) {
          put<L>(target + to, gradient.template through<activation()>(load(grad + from, lanes), load(y + from, lanes)),
                 lanes);
        });
      });
    }
  }

  void stage_input(const Block<A, L>& block, int64_t image, int64_t y) {
    const T* const source = static_cast<const T*>(p.x) + block.row(image, y, s.height, s.width);
    A* const target = (padded.split() ? contiguous.data() : a.data()) + s.left * pixel;
    for (int v = 0; v < block.vectors(); ++v) {
      if (!p.prologue) {
        block.for_each_in_row(s.width, v, [&](int64_t from, int64_t to, auto lanes) {
          put<L>(target + to, load(source + from, lanes), lanes);
        });
        continue;
      }
      const auto affine = column_affine<L, A>(p.affine1, block.channel(v));
      dispatch_batch_norm_activation(p.activation, [&](auto activation) {
        block.for_each_in_row(s.width, v, [&](int64_t from, int64_t to, auto lanes) {
          const V x = load(source + from, lanes);
          const auto activated = activate_with_derivative<activation()>(affine.transformed(x));
          put<L>(target + to, activated.value, lanes);
          put<L>(slope.data() + to, activated.derivative, lanes);
          put<L>(normalized.data() + to, affine.normalized(x), lanes);
        });
      });
    }
    if (padded.split()) padded.split_from(contiguous.data(), positions, a.data());
  }

  // da[x] = Σ_{i,j} w[i, j] · dy[(y + top − i) / stride, (x + left − j) / stride] where both divide. With stride 2 the
  // even and the odd x have taps of their own.
  void input_gradient_row(const BlockWeights<A, L>& block_weights, const OutRows& rows, int64_t y, int v) {
    const int64_t shift = v * V::size;
    for (int phase = 0; phase < s.stride; ++phase) {
      Tap<A> taps[49];
      int count = 0;
      for (int64_t out_y = rows.first; out_y < rows.last; ++out_y) {
        const int64_t i = y + s.top - out_y * s.stride;
        for (int j = (phase + s.left) % s.stride; j < s.kernel_size; j += s.stride) {
          const int64_t out_x = (phase + s.left - j) / s.stride;  // exact, and at least −margin
          taps[count++] = {slot(out_y) + (margin + out_x) * pixel, block_weights.tap(int(i) * s.kernel_size + j)};
        }
      }
      const int64_t outputs = (s.width - phase + s.stride - 1) / s.stride;
      const int64_t vectors = Block<A, L>::row_vectors(outputs);
      if constexpr (L == Layout::nhwc) {
        apply_taps(taps, count, shift, vectors, kBlock, da.data() + phase * kBlock + shift, s.stride * kBlock);
      } else {
        A* const out = s.stride == 1 ? da.data() : da_phases.data() + phase * (in_size + V::size);
        apply_taps(taps, count, shift, vectors, V::size, out, V::size);
        if (s.stride == 2) {
          for (int64_t k = 0; k < outputs; ++k) da[2 * k + phase] = out[k];
        }
      }
    }
  }

  void weight_gradient_row(const OutRows& rows, int64_t y, int v) {
    const int64_t shift = v * V::size, vectors = Block<A, L>::row_vectors(s.out_width);
    const int64_t dy_step = L == Layout::nhwc ? kBlock : V::size;
    for (int64_t out_y = rows.first; out_y < rows.last; ++out_y) {
      const int64_t i = y + s.top - out_y * s.stride;
      const A* const dy = slot(out_y) + margin * pixel + shift;
      A* const target = dweight.data() + i * s.kernel_size * kBlock + shift;
      const auto run = [&](auto kernel_size) {
        accumulate_weight_gradient<kernel_size(), L>(dy, dy_step, a.data() + shift, padded, vectors, target, kBlock);
      };
      if (s.kernel_size == 3) run(Constant<3>{});
      if (s.kernel_size == 5) run(Constant<5>{});
      if (s.kernel_size == 7) run(Constant<7>{});
    }
  }

  void write(const Block<A, L>& block, int64_t image, int64_t y) {
    T* const dx = static_cast<T*>(p.dx) + block.row(image, y, s.height, s.width);
    for (int v = 0; v < block.vectors(); ++v) {
      if (!p.prologue) {
        block.for_each_in_row(s.width, v, [&](int64_t to, int64_t from, auto lanes) {
          store(dx + to, load(da.data() + from, AllLanes{}), lanes);
        });
        continue;
      }
      V beta_sum = load(dbeta.data() + v * V::size, AllLanes{}),
        gamma_sum = load(dgamma.data() + v * V::size, AllLanes{});
      block.for_each_in_row(s.width, v, [&](int64_t to, int64_t from, auto lanes) {
        const V dv = load(da.data() + from, AllLanes{}) * load(slope.data() + from, AllLanes{});
        store(dx + to, dv, lanes);
        beta_sum += fill_lanes(dv, V::zero(), lanes);
        gamma_sum += fill_lanes(dv * load(normalized.data() + from, AllLanes{}), V::zero(), lanes);
      });
      store(dbeta.data() + v * V::size, beta_sum, AllLanes{});
      store(dgamma.data() + v * V::size, gamma_sum, AllLanes{});
    }
  }

  void write_parts(const Block<A, L>& block, int64_t part) {
    for (int v = 0; v < block.vectors(); ++v) {
      const int64_t channel = block.channel(v), shift = v * V::size;
      for (int t = 0; t < s.taps(); ++t) {
        A* const row = static_cast<A*>(p.dweight) + (part * s.taps() + t) * channel_row;
        store_sum<L>(row, channel, load(dweight.data() + t * kBlock + shift, AllLanes{}));
      }
      if (!p.prologue) continue;
      store_sum<L>(static_cast<A*>(p.dbeta1) + part * channel_row, channel, load(dbeta.data() + shift, AllLanes{}));
      store_sum<L>(static_cast<A*>(p.dgamma1) + part * channel_row, channel, load(dgamma.data() + shift, AllLanes{}));
    }
  }

  const DepthwiseBackwardParams& p;
  const DepthwiseShape& s;
  const int64_t channel_row;
  const int64_t positions;  // of a padded input row, as far as the widest vector of taps reaches
  const PaddedRow<A, L> padded;
  const int64_t margin;  // zeros before a dy row
  const int64_t dy_size, in_size;
  Buffer<A> ring, a, contiguous, da, da_phases, slope, normalized, weights, dweight, dbeta, dgamma;
};
