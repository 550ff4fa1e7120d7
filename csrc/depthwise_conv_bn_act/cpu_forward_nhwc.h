// One unit of the forward pass in channels_last: a strip of output rows of a group of images, for one slice. Reads the
// input rows once, keeps K activated rows in a ring, writes every output row once. Included per instruction set.

template <class T>
class ForwardSlice {
  using A = accumulator_t<T>;
  using V = Vec<A>;

 public:
  explicit ForwardSlice(const DepthwiseForwardParams& params)
      : p(params),
        s(params.shape),
        channel_row(padded_channels(s.channels)),
        pixel(Slice<A>::pixel_of(params.units)),
        row_size(std::max(s.left + s.width, (s.out_width - 1) * s.stride + s.kernel_size) * pixel),
        tile_rows(std::max<int64_t>(1, kTilePixels / s.out_width)),
        target(static_cast<T*>(p.out), s.images * s.channels * s.out_pixels(), s.channels),
        ring(s.kernel_size * row_size),
        tile(tile_rows * s.out_width * pixel) {}

  void run(int64_t unit) {
    const int64_t group_part = unit / p.units.blocks, strip = group_part % p.units.strips;
    const auto slice = Slice<A>::make(s.channels, p.units, unit % p.units.blocks);
    for (int v = 0; v < slice.vectors(); ++v) {
      if (p.prologue) affine1[v] = column_affine<Layout::nhwc, A>(p.affine1, slice.channel_of(v));
      if (p.inference) affine2[v] = column_affine<Layout::nhwc, A>(p.affine2, slice.channel_of(v));
    }
    const int64_t first_image = group_part / p.units.strips * p.units.images_per_group;
    const int64_t last_image = std::min(first_image + p.units.images_per_group, s.images);
    for (int64_t image = first_image; image < last_image; ++image) run_image(slice, image, strip);
  }

 private:
  static constexpr int64_t kTilePixels = 64;  // of the output, written together; their statistics have one centre

  void run_image(const Slice<A>& slice, int64_t image, int64_t strip) {
    const int64_t first = strip * p.units.rows_per_strip;
    const int64_t last = std::min(first + p.units.rows_per_strip, s.out_height);
    for (int v = 0; v < slice.vectors(); ++v) {
      moments[v] = RunningMoments<A>::none();
      sums[v] = V::zero();
    }
    int64_t next_row = 0;
    for (int64_t tile_first = first; tile_first < last; tile_first += tile_rows) {
      const int64_t tile_last = std::min(tile_first + tile_rows, last);
      for (int v = 0; v < slice.vectors(); ++v) centres[v] = V::zero();
      for (int64_t y = tile_first; y < tile_last; ++y) {
        const int64_t top = y * s.stride - s.top;
        for (next_row = std::max({next_row, top, int64_t(0)}); next_row < std::min(top + s.kernel_size, s.height);
             ++next_row) {
          stage(slice, image, next_row);
        }
        convolve(slice, top, tile_row(y - tile_first), [&](int v) {
          if (!target.past_caches()) slice.prefetch(out_row(slice, image, y), s.out_width, v);
        });
      }
      write(slice, image, tile_first, tile_last);
    }
    write_parts(slice, image * p.units.strips + strip);
  }

  A* tile_row(int64_t row) { return tile.data() + row * s.out_width * pixel; }
  T* out_row(const Slice<A>& slice, int64_t image, int64_t y) const {
    return static_cast<T*>(p.out) + slice.row(image, y, s.out_height, s.out_width);
  }
  const T* in_row(const Slice<A>& slice, int64_t image, int64_t y) const {
    return static_cast<const T*>(p.x) + slice.row(image, y, s.height, s.width);
  }
  A* slot(int64_t y) { return ring.data() + y % s.kernel_size * row_size; }

  // Row y of the input, activated, into its place in the ring. The margins stay zero from the start.
  void stage(const Slice<A>& slice, int64_t image, int64_t y) {
    const T* const source = in_row(slice, image, y);
    A* const target = slot(y) + s.left * pixel;
    if (p.prologue) {
      dispatch_batch_norm_activation(p.activation,
                                     [&](auto activation) { stage_activated<activation()>(slice, source, target); });
    } else {
      const T* const next = source + s.width * s.channels;
      slice.for_each_in_row(s.width, [&](int, int64_t from, int64_t to, auto lanes) {
        prefetch_line(next + from);
        store(target + to, load(source + from, lanes), AllLanes{});
      });
    }
  }
  template <Activation Act>
  void stage_activated(const Slice<A>& slice, const T* source, A* target) {
    const T* const next = source + s.width * s.channels;
    slice.for_each_in_row(s.width, [&](int v, int64_t from, int64_t to, auto lanes) {
      prefetch_line(next + from);
      store(target + to, activate<Act>(affine1[v].transformed(load(source + from, lanes))), AllLanes{});
    });
  }

  // A row of the tile; adds it up in centres.
  template <class Prefetch>
  void convolve(const Slice<A>& slice, int64_t top, A* out, Prefetch prefetch) {
    const A* const weight = static_cast<const A*>(p.weight) + slice.first;
    Tap<A> taps[49];
    int count = 0;
    for (int i = 0; i < s.kernel_size; ++i) {
      if (top + i < 0 || top + i >= s.height) continue;
      for (int j = 0; j < s.kernel_size; ++j) {
        taps[count++] = {slot(top + i) + j * pixel, weight + (i * s.kernel_size + j) * channel_row};
      }
    }
    for (int v = 0; v < slice.vectors(); ++v) {
      const int64_t shift = v * V::size;
      prefetch(v);
      centres[v] += apply_taps(taps, count, shift, s.out_width, s.stride * pixel, out + shift, pixel);
    }
  }

  // The tile's rows, from output row `first` to `last`.
  void write(const Slice<A>& slice, int64_t image, int64_t first, int64_t last) {
    if (p.mean) start_moments(slice, (last - first) * s.out_width);
    for (int64_t y = first; y < last; ++y) {
      const A* const source = tile_row(y - first);
      T* const out = out_row(slice, image, y);
      if (p.inference) {
        dispatch_batch_norm_activation(p.activation,
                                       [&](auto activation) { write_activated<activation()>(slice, source, out); });
      } else if (p.mean) {
        write_measured(slice, source, out);
      } else {
        slice.for_each_in_row(s.out_width, [&](int, int64_t to, int64_t from, auto lanes) {
          target.store(out + to, load(source + from, AllLanes{}), lanes);
        });
      }
    }
    if (p.mean) finish_moments(slice, (last - first) * s.out_width);
  }

  template <Activation Act>
  void write_activated(const Slice<A>& slice, const A* source, T* out) {
    slice.for_each_in_row(s.out_width, [&](int v, int64_t to, int64_t from, auto lanes) {
      const V z = activate<Act>(affine2[v].transformed(load(source + from, AllLanes{})));
      target.store(out + to, z, lanes);
      sums[v] += z;
    });
  }

  // Statistics of what is stored. A tile is centred on its mean, but for the rounding of the stored values and of the
  // mean itself, which the sum of deviations corrects.
  void start_moments(const Slice<A>& slice, int64_t elements) {
    const V per_element = V::broadcast(A(1) / A(elements));
    for (int v = 0; v < slice.vectors(); ++v) {
      centres[v] = centres[v] * per_element;
      deviations[v] = m2s[v] = V::zero();
    }
  }
  void write_measured(const Slice<A>& slice, const A* source, T* out) {
    slice.for_each_in_row(s.out_width, [&](int v, int64_t to, int64_t from, auto lanes) {
      const V y = load(source + from, AllLanes{});
      target.store(out + to, y, lanes);
      const V deviation = stored<T>(y) - centres[v];
      deviations[v] += deviation;
      m2s[v] += deviation * deviation;
    });
  }
  void finish_moments(const Slice<A>& slice, int64_t elements) {
    const V per_element = V::broadcast(A(1) / A(elements));
    for (int v = 0; v < slice.vectors(); ++v) {
      const V correction = deviations[v] * per_element;
      moments[v].merge(centres[v] + correction, m2s[v] - deviations[v] * correction, elements);
    }
  }

  void write_parts(const Slice<A>& slice, int64_t part) {
    for (int v = 0; v < slice.vectors(); ++v) {
      const int64_t at = part * channel_row + slice.channel_of(v);
      if (p.mean) {
        store(static_cast<A*>(p.mean) + at, moments[v].mean, AllLanes{});
        store(static_cast<A*>(p.m2) + at, moments[v].m2, AllLanes{});
      }
      if (p.z_sum) store(static_cast<A*>(p.z_sum) + at, sums[v], AllLanes{});
    }
  }

  const DepthwiseForwardParams& p;
  const DepthwiseShape& s;
  const int64_t channel_row, pixel, row_size, tile_rows;
  const Target<T> target;
  Buffer<A> ring, tile;
  ColumnAffine<A> affine1[Slice<A>::max_vectors], affine2[Slice<A>::max_vectors];
  RunningMoments<A> moments[Slice<A>::max_vectors];
  V sums[Slice<A>::max_vectors], centres[Slice<A>::max_vectors], deviations[Slice<A>::max_vectors],
      m2s[Slice<A>::max_vectors];
};
