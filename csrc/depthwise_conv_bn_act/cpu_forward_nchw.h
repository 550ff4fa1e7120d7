// One unit of the forward pass in NCHW: a strip of output rows of a group of images, for one channel. Reads the input
// rows once, keeps K activated rows in a ring, writes every output row once. Included per instruction set.

template <class T>
class ForwardPlane {
  using A = accumulator_t<T>;
  using V = Vec<A>;

 public:
  explicit ForwardPlane(const DepthwiseForwardParams& params)
      : p(params),
        s(params.shape),
        channel_row(padded_channels(s.channels)),
        positions(s.left + s.width + s.kernel_size + s.stride * V::size),
        padded(PaddedRow<A>::make(positions, s.stride)),
        row_size(padded.size(positions)),
        ring(s.kernel_size * row_size),
        contiguous(positions + V::size),
        out_row(s.out_width + 2 * V::size),
        weights(s.taps() * V::size) {}

  void run(int64_t unit) {
    const int64_t group_part = unit / p.units.blocks, strip = group_part % p.units.strips;
    const int64_t channel = unit % p.units.blocks;
    broadcast_weights(static_cast<const A*>(p.weight), channel_row, s.taps(), channel, weights.data());
    const int64_t first_image = group_part / p.units.strips * p.units.images_per_group;
    const int64_t last_image = std::min(first_image + p.units.images_per_group, s.images);
    for (int64_t image = first_image; image < last_image; ++image) run_image(channel, image, strip);
  }

 private:
  static constexpr int64_t kMeasuredPixels = 1024;

  void run_image(int64_t channel, int64_t image, int64_t strip) {
    const int64_t first = strip * p.units.rows_per_strip;
    const int64_t last = std::min(first + p.units.rows_per_strip, s.out_height);
    const int64_t plane = image * s.channels + channel;
    auto moments = RunningMoments<A>::none();
    V sum = V::zero();
    int64_t next_row = 0, unmeasured = first;
    for (int64_t y = first; y < last; ++y) {
      const int64_t top = y * s.stride - s.top;
      for (next_row = std::max({next_row, top, int64_t(0)}); next_row < std::min(top + s.kernel_size, s.height);
           ++next_row) {
        stage(channel, plane, next_row);
      }
      convolve(top);
      T* const out = static_cast<T*>(p.out) + (plane * s.out_height + y) * s.out_width;
      if (p.inference) {
        write_activated(channel, out, sum);
        continue;
      }
      for_each_in_row<A>(s.out_width,
                         [&](int64_t x, auto lanes) { store(out + x, load(out_row.data() + x, AllLanes{}), lanes); });
      // Statistics of what was stored, while it is still in cache.
      const bool enough = (y + 1 - unmeasured) * s.out_width >= kMeasuredPixels;
      if (p.mean && (enough || y + 1 == last)) {
        const int64_t start = (plane * s.out_height + unmeasured) * s.out_width;
        accumulate_moments<T, Layout::nchw>(moments, static_cast<const T*>(p.out),
                                            plane_column<A>(channel, start, (y + 1 - unmeasured) * s.out_width));
        unmeasured = y + 1;
      }
    }
    const int64_t at = (image * p.units.strips + strip) * channel_row + channel;
    if (p.mean) {
      static_cast<A*>(p.mean)[at] = moments.mean.raw[0];
      static_cast<A*>(p.m2)[at] = moments.m2.raw[0];
    }
    if (p.z_sum) static_cast<A*>(p.z_sum)[at] = sum_of_lanes(sum);
  }

  A* slot(int64_t y) { return ring.data() + y % s.kernel_size * row_size; }

  // Row y of the input, activated, into its place in the ring. The margins stay zero from the start.
  void stage(int64_t channel, int64_t plane, int64_t y) {
    const T* const source = static_cast<const T*>(p.x) + (plane * s.height + y) * s.width;
    A* const target = (padded.split() ? contiguous.data() : slot(y)) + s.left;
    if (!p.prologue) {
      for_each_in_row<A>(s.width, [&](int64_t x, auto lanes) { store(target + x, load(source + x, lanes), lanes); });
    } else {
      const auto affine = column_affine<Layout::nchw, A>(p.affine1, channel);
      dispatch_batch_norm_activation(p.activation, [&](auto activation) {
        for_each_in_row<A>(s.width, [&](int64_t x, auto lanes) {
          store(target + x, activate<activation()>(affine.transformed(load(source + x, lanes))), lanes);
        });
      });
    }
    if (padded.split()) padded.split_from(contiguous.data(), positions, slot(y));
  }

  void convolve(int64_t top) {
    Tap<A> taps[49];
    int count = 0;
    for (int i = 0; i < s.kernel_size; ++i) {
      if (top + i < 0 || top + i >= s.height) continue;
      for (int j = 0; j < s.kernel_size; ++j) {
        taps[count++] = {slot(top + i) + padded.tap(j), weights.data() + (i * s.kernel_size + j) * V::size};
      }
    }
    apply_taps(taps, count, 0, row_vectors<A>(s.out_width), V::size, out_row.data(), V::size);
  }

  void write_activated(int64_t channel, T* out, V& sum) {
    const auto affine = column_affine<Layout::nchw, A>(p.affine2, channel);
    dispatch_batch_norm_activation(p.activation, [&](auto activation) {
      for_each_in_row<A>(s.out_width, [&](int64_t x, auto lanes) {
        const V z = activate<activation()>(affine.transformed(load(out_row.data() + x, AllLanes{})));
        store(out + x, z, lanes);
        sum += fill_lanes(z, V::zero(), lanes);
      });
    });
  }

  const DepthwiseForwardParams& p;
  const DepthwiseShape& s;
  const int64_t channel_row;
  const int64_t positions;  // of a padded row, as far as the widest vector of taps reaches
  const PaddedRow<A> padded;
  const int64_t row_size;
  Buffer<A> ring, contiguous, out_row, weights;
};
