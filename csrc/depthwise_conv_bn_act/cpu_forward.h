// One unit of the forward pass: a strip of output rows of a group of images, for one block. Reads the input rows once,
// keeps K activated rows in a ring, writes every output row once. Included per instruction set.

template <class T, Layout L>
class ForwardUnit {
  using A = accumulator_t<T>;
  using V = Vec<A>;

 public:
  explicit ForwardUnit(const DepthwiseForwardParams& params)
      : p(params),
        s(params.shape),
        channel_row(padded_channels(s.channels)),
        positions(s.left + s.width + s.kernel_size + s.stride * V::size),
        padded(PaddedRow<A, L>::make(positions, s.stride)),
        row_size(padded.size(positions)),
        ring(s.kernel_size * row_size),
        contiguous(positions + V::size),
        out_row(s.out_width * Block<A, L>::pixel + 2 * V::size),
        weights(s.taps() * V::size),
        sums(kBlock) {}

  void run(int64_t unit) {
    const int64_t group_part = unit / p.units.blocks, strip = group_part % p.units.strips;
    const auto block = Block<A, L>::make(s.channels, unit % p.units.blocks);
    const auto block_weights =
        BlockWeights<A, L>::make(static_cast<const A*>(p.weight), channel_row, s.taps(), block, weights.data());
    const int64_t first_image = group_part / p.units.strips * p.units.images_per_group;
    const int64_t last_image = std::min(first_image + p.units.images_per_group, s.images);
    for (int64_t image = first_image; image < last_image; ++image) run_image(block, block_weights, image, strip);
  }

 private:
  static constexpr int64_t kMeasuredPixels = L == Layout::nhwc ? 64 : 1024;

  void run_image(const Block<A, L>& block, const BlockWeights<A, L>& block_weights, int64_t image, int64_t strip) {
    const int64_t first = strip * p.units.rows_per_strip;
    const int64_t last = std::min(first + p.units.rows_per_strip, s.out_height);
    RunningMoments<A> moments[kBlock];
    for (int v = 0; v < block.vectors(); ++v) {
      moments[v] = RunningMoments<A>::none();
      store(sums.data() + v * V::size, V::zero(), AllLanes{});
    }
    int64_t next_row = 0, unmeasured = first;
    for (int64_t y = first; y < last; ++y) {
      const int64_t top = y * s.stride - s.top;
      for (next_row = std::max({next_row, top, int64_t(0)}); next_row < std::min(top + s.kernel_size, s.height);
           ++next_row) {
        stage(block, image, next_row);
      }
      convolve(block, block_weights, top);
      const int64_t out_start = block.row(image, y, s.out_height, s.out_width);
      if (p.inference) {
        write_inference(block, out_start);
        continue;
      }
      write(block, out_start);
      // Statistics of what was stored, while it is still in cache.
      const bool enough = (y + 1 - unmeasured) * s.out_width >= kMeasuredPixels;
      if (p.mean && (enough || y + 1 == last)) {
        measure(block, image, unmeasured, y + 1, moments);
        unmeasured = y + 1;
      }
    }
    write_parts(block, image * p.units.strips + strip, moments);
  }

  A* slot(int64_t y) { return ring.data() + y % s.kernel_size * row_size; }

  // Row y of the input, activated, into its place in the ring. The margins stay zero from the start.
  void stage(const Block<A, L>& block, int64_t image, int64_t y) {
    const T* const source = static_cast<const T*>(p.x) + block.row(image, y, s.height, s.width);
    A* const target = (padded.split() ? contiguous.data() : slot(y)) + s.left * Block<A, L>::pixel;
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
          put<L>(target + to, activate<activation()>(affine.transformed(load(source + from, lanes))), lanes);
        });
      });
    }
    if (padded.split()) padded.split_from(contiguous.data(), positions, slot(y));
  }

  void convolve(const Block<A, L>& block, const BlockWeights<A, L>& block_weights, int64_t top) {
    Tap<A> taps[49];
    int count = 0;
    for (int i = 0; i < s.kernel_size; ++i) {
      if (top + i < 0 || top + i >= s.height) continue;
      for (int j = 0; j < s.kernel_size; ++j) {
        taps[count++] = {slot(top + i) + padded.tap(j), block_weights.tap(i * s.kernel_size + j)};
      }
    }
    const int64_t out_step = L == Layout::nhwc ? kBlock : V::size;
    for (int v = 0; v < block.vectors(); ++v) {
      const int64_t shift = v * V::size;
      apply_taps(taps, count, shift, Block<A, L>::row_vectors(s.out_width), padded.step(), out_row.data() + shift,
                 out_step);
    }
  }

  void write(const Block<A, L>& block, int64_t start) {
    T* const out = static_cast<T*>(p.out) + start;
    for (int v = 0; v < block.vectors(); ++v) {
      block.for_each_in_row(s.out_width, v, [&](int64_t to, int64_t from, auto lanes) {
        store(out + to, load(out_row.data() + from, AllLanes{}), lanes);
      });
    }
  }

  void write_inference(const Block<A, L>& block, int64_t start) {
    T* const out = static_cast<T*>(p.out) + start;
    for (int v = 0; v < block.vectors(); ++v) {
      const auto affine = column_affine<L, A>(p.affine2, block.channel(v));
      V sum = load(sums.data() + v * V::size, AllLanes{});
      dispatch_batch_norm_activation(p.activation, [&](auto activation) {
        block.for_each_in_row(s.out_width, v, [&](int64_t to, int64_t from, auto lanes) {
          const V z = activate<activation()>(affine.transformed(load(out_row.data() + from, AllLanes{})));
          store(out + to, z, lanes);
          sum += fill_lanes(z, V::zero(), lanes);
        });
      });
      store(sums.data() + v * V::size, sum, AllLanes{});
    }
  }

  void measure(const Block<A, L>& block, int64_t image, int64_t first, int64_t last, RunningMoments<A>* moments) {
    const int64_t start = block.row(image, first, s.out_height, s.out_width);
    for (int v = 0; v < block.vectors(); ++v) {
      accumulate_moments<T, L>(moments[v], static_cast<const T*>(p.out),
                               block.column(start, (last - first) * s.out_width, v));
    }
  }

  void write_parts(const Block<A, L>& block, int64_t part, const RunningMoments<A>* moments) {
    for (int v = 0; v < block.vectors(); ++v) {
      const int64_t channel = block.channel(v), row = part * channel_row;
      if (p.mean) {
        store_channels<L>(static_cast<A*>(p.mean) + row, channel, moments[v].mean);
        store_channels<L>(static_cast<A*>(p.m2) + row, channel, moments[v].m2);
      }
      if (p.z_sum) store_sum<L>(static_cast<A*>(p.z_sum) + row, channel, load(sums.data() + v * V::size, AllLanes{}));
    }
  }

  const DepthwiseForwardParams& p;
  const DepthwiseShape& s;
  const int64_t channel_row;
  const int64_t positions;  // of a padded row, as far as the widest vector of taps reaches
  const PaddedRow<A, L> padded;
  const int64_t row_size;
  Buffer<A> ring, contiguous, out_row, weights, sums;
};
