// How a kernel walks an activation tensor: in panels or in columns. A column is a run of vectors that share their
// channels: in channels_last neighbouring channels, one vector per pixel; in NCHW one channel, the vectors along the plane.
// Included per instruction set by foreach_capability.h.

// Into the second-level cache, so that arithmetic on what is there already hides the wait. The address may lie beyond its
// tensor; nothing is read.
template <class T>
EK_INLINE void prefetch_line(const T* address) {
  __builtin_prefetch(address, 0, 2);
}

// Tensors of so many elements are not in a cache from one pass to the next.
inline constexpr int64_t kLargeElements = int64_t(1) << 20;

// What a streaming pass will come to, two pages on, since the processor's own prefetching ends with a page. Where a tensor
// may lie in a cache from the pass before, it costs more than it saves.
class Stream {
 public:
  explicit Stream(const Extent& extent) : is_large_(extent.elements() >= kLargeElements) {}
  static Stream none() { return Stream(); }

  template <class T>
  EK_INLINE void prefetch(const T* address) const {
    if (is_large_) prefetch_line(reinterpret_cast<const char*>(address) + kAhead);
  }

 private:
  static constexpr int64_t kAhead = 8192;
  Stream() : is_large_(false) {}

  bool is_large_;
};

// A tensor that is written once, from its first vector to its last. Large ones are written past the caches: else a line
// would be read before all of it is overwritten, and be gone from the caches before it is used.
template <class T>
class Target {
  using A = accumulator_t<T>;

 public:
  // Vectors start at multiples of a vector within runs of `run` elements.
  Target(T* first, int64_t elements, int64_t run)
      : past_(kCanPass && elements >= kLargeElements && run % Vec<A>::size == 0 &&
              reinterpret_cast<uintptr_t>(first) % kLine == 0) {}
  // In another thread's sight before whatever is written next.
  ~Target() {
#if EK_VECTOR_BYTES == 64
    if (past_) _mm_sfence();
#endif
  }
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;

  bool past_caches() const { return past_; }

  template <class Lanes>
  EK_INLINE void store(T* target, Vec<A> v, Lanes lanes) const {
#if EK_VECTOR_BYTES == 64
    if constexpr (kCanPass && std::is_same_v<Lanes, AllLanes>) {
      if (past_) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(target), (__m512i)v.raw);
        return;
      }
    }
#endif
    EK_CPU_ISA::store(target, v, lanes);
  }

 private:
  static constexpr uintptr_t kLine = 64;
  static constexpr bool kCanPass = std::is_same_v<T, A> && EK_VECTOR_BYTES == kLine;
  bool past_;
};

template <class A, Layout L>
struct Column {
  static constexpr int size = Vec<A>::size;

  int64_t image, part, channel;
  int64_t offset;  // element of the first vector
  int64_t step;    // elements from one vector to the next
  int64_t count;   // vectors of `size` lanes (NCHW), or pixels (channels_last)
  int lanes;       // NCHW: lanes of one more vector at the end; channels_last: lanes of every vector

  int64_t elements_per_channel() const { return L == Layout::nhwc ? count : count * size + lanes; }

  // f(element, lanes) for every vector, with AllLanes where the vector is whole.
  template <class F>
  EK_INLINE void for_each_vector(F f) const {
    if constexpr (L == Layout::nhwc) {
      if (lanes == size) {
        for (int64_t i = 0; i < count; ++i) f(offset + i * step, AllLanes{});
      } else {
        for (int64_t i = 0; i < count; ++i) f(offset + i * step, lanes);
      }
    } else {
      for (int64_t i = 0; i < count; ++i) f(offset + i * step, AllLanes{});
      if (lanes > 0) f(offset + count * step, lanes);
    }
  }
};

// What one work item of a streaming pass walks: a slice of the channels of a part. channels_last is walked as it lies
// in memory, pixel after pixel along all channels of the slice (a stride would be lost on the processor's prefetching);
// NCHW along one plane.
template <class A, Layout L>
struct Panel {
  static constexpr int size = Vec<A>::size;
  static constexpr int max_vectors = L == Layout::nhwc ? int(Extent::kMaxSliceChannels / size) : 1;

  int64_t image, part;
  int64_t channel;   // first
  int64_t channels;  // of the slice; one in NCHW
  int64_t offset;    // element of the first vector
  int64_t step;      // elements from a vector to the next of the same channels
  int64_t count;     // pixels (channels_last), or vectors of `size` lanes (NCHW)
  int tail;          // lanes of one more vector at the end: of every pixel (channels_last), or of the plane (NCHW)

  int vectors() const { return int((channels + size - 1) / size); }
  int64_t channel_of(int vector) const { return channel + vector * size; }
  int64_t elements_per_channel(int64_t first, int64_t last) const {
    if constexpr (L == Layout::nhwc) return last - first;
    return (last - first) * size + (last == count ? tail : 0);
  }

  // f(vector of channels, element, lanes) from pixel or vector `first` to `last`.
  template <class F>
  EK_INLINE void for_each_vector(int64_t first, int64_t last, F f) const {
    if constexpr (L == Layout::nchw) {
      for (int64_t i = first; i < last; ++i) f(0, offset + i * size, AllLanes{});
      if (tail > 0 && last == count) f(0, offset + count * size, tail);
    } else {
      const int whole = int(channels / size);
      for (int64_t i = first; i < last; ++i) {
        const int64_t start = offset + i * step;
        for (int v = 0; v < whole; ++v) f(v, start + v * size, AllLanes{});
        if (tail > 0) f(whole, start + whole * size, tail);
      }
    }
  }
  template <class F>
  EK_INLINE void for_each_vector(F f) const {
    for_each_vector(0, count, f);
  }
};

// A channel vector's values for the lanes of a column.
template <Layout L, class A>
EK_INLINE Vec<A> channel_values(const A* row, int64_t channel) {
  if constexpr (L == Layout::nhwc) return load(row + channel, AllLanes{});
  return Vec<A>::broadcast(row[channel]);
}
template <Layout L, class A>
EK_INLINE Vec<A> channel_values_or(const A* row, int64_t channel, A otherwise) {
  return row ? channel_values<L>(row, channel) : Vec<A>::broadcast(otherwise);
}

// A channel's value, the same in all the lanes that stand for it, into a row of padded channels.
template <Layout L, class A>
EK_INLINE void store_channels(A* row, int64_t channel, Vec<A> values) {
  if constexpr (L == Layout::nhwc) {
    store(row + channel, values, AllLanes{});
  } else {
    row[channel] = values.raw[0];
  }
}

// A column's sum per channel, into a row of padded channels.
template <Layout L, class A>
EK_INLINE void store_sum(A* row, int64_t channel, Vec<A> sum) {
  if constexpr (L == Layout::nhwc) {
    store(row + channel, sum, AllLanes{});
  } else {
    row[channel] = sum_of_lanes(sum);
  }
}

// A column's sum per channel, in every lane that stands for that channel.
template <Layout L, class A>
EK_INLINE Vec<A> channel_sum(Vec<A> sum) {
  if constexpr (L == Layout::nhwc) return sum;
  return Vec<A>::broadcast(sum_of_lanes(sum));
}

// A BatchNorm's constants for the lanes of a column.
template <class A>
struct ColumnAffine {
  Vec<A> mean, rstd, scale, beta;

  EK_INLINE Vec<A> normalized(Vec<A> x) const { return (x - mean) * rstd; }
  EK_INLINE Vec<A> transformed(Vec<A> x) const { return (x - mean) * scale + beta; }
};
template <Layout L, class A>
EK_INLINE ColumnAffine<A> column_affine(const Affine& affine, int64_t channel) {
  return {channel_values<L>(static_cast<const A*>(affine.mean), channel),
          channel_values<L>(static_cast<const A*>(affine.rstd), channel),
          channel_values<L>(static_cast<const A*>(affine.scale), channel),
          channel_values<L>(static_cast<const A*>(affine.beta), channel)};
}

// The gradient through a BatchNorm and its activation, for the lanes of a column (Gradient in passes.h).
template <class A>
struct ColumnGradient {
  ColumnAffine<A> affine;
  Vec<A> factor, offset;
  Vec<A> scaled_mean_dv, scaled_mean_dv_x;  // scale · mean_dv and scale · mean_dv_x · rstd

  template <Activation Act>
  EK_INLINE Vec<A> through(Vec<A> grad, Vec<A> x) const {
    const Vec<A> slope = activate_with_derivative<Act>(affine.transformed(x)).derivative;
    const Vec<A> dv = (grad * factor + offset) * slope;
    return dv * affine.scale - scaled_mean_dv - (x - affine.mean) * scaled_mean_dv_x;
  }
};
template <Layout L, class A>
EK_INLINE ColumnGradient<A> column_gradient(const Affine& affine, const Gradient& gradient, int64_t image_row,
                                            int64_t channel) {
  const A* const factor = static_cast<const A*>(gradient.factor);
  const A* const offset = static_cast<const A*>(gradient.offset);
  const ColumnAffine<A> values = column_affine<L, A>(affine, channel);
  const Vec<A> mean_dv = channel_values<L>(static_cast<const A*>(gradient.mean_dv), channel);
  const Vec<A> mean_dv_x = channel_values<L>(static_cast<const A*>(gradient.mean_dv_x), channel);
  return {values, channel_values_or<L>(factor ? factor + image_row : nullptr, channel, A(1)),
          channel_values_or<L>(offset ? offset + image_row : nullptr, channel, A(0)), values.scale * mean_dv,
          values.scale * values.rstd * mean_dv_x};
}

// f(panel) for the work items [begin, end).
template <class A, Layout L, class F>
EK_INLINE void for_each_panel(const Extent& extent, int64_t begin, int64_t end, F f) {
  constexpr int size = Vec<A>::size;
  const int64_t slices = extent.slices(), slice_channels = extent.slice_channels(), chunks = extent.chunks();
  for (int64_t item = begin; item < end; ++item) {
    const int64_t part = item / slices, slice = item % slices;
    if constexpr (L == Layout::nchw) {
      const int64_t pixels = extent.pixels;
      f(Panel<A, L>{part, part, slice, 1, item * pixels, size, pixels / size, int(pixels % size)});
    } else {
      const int64_t image = part / chunks;
      const int64_t first_pixel = image * extent.pixels + part % chunks * Extent::kChunkPixels;
      const int64_t channel = slice * slice_channels;
      const int64_t channels = std::min(slice_channels, extent.channels - channel);
      f(Panel<A, L>{image, part, channel, channels, first_pixel * extent.channels + channel, extent.channels,
                    extent.part_pixels(part), int(channels % size)});
    }
  }
}

// Mean and M2 = Σ (x − mean)² of the elements seen so far, per lane; the lanes of one channel agree.
template <class A>
struct RunningMoments {
  Vec<A> mean, m2;
  int64_t count;

  // Not default member initializers: GCC gives an implicit constructor no target of its own.
  static EK_INLINE RunningMoments none() { return {Vec<A>::zero(), Vec<A>::zero(), 0}; }

  // Chan, Golub and LeVeque 1979, equation 1.5b.
  EK_INLINE void merge(Vec<A> other_mean, Vec<A> other_m2, int64_t other_count) {
    const int64_t total = count + other_count;
    const Vec<A> delta = other_mean - mean;
    mean += delta * Vec<A>::broadcast(A(other_count) / A(total));
    m2 += other_m2 + delta * delta * Vec<A>::broadcast(A(count) * (A(other_count) / A(total)));
    count = total;
  }
};

// Adds a column's elements, in tiles that stay in L1 so that each is centred on its own mean: no E[x²] − E[x]².
template <class T, Layout L>
EK_INLINE void accumulate_moments(RunningMoments<accumulator_t<T>>& moments, const T* x,
                                  const Column<accumulator_t<T>, L>& column) {
  using A = accumulator_t<T>;
  constexpr int64_t kTileVectors = 64;
  int64_t first = 0;
  do {
    Column<A, L> tile = column;
    tile.offset += first * column.step;
    tile.count = std::min(kTileVectors, column.count - first);
    first += kTileVectors;
    if (L == Layout::nchw && first < column.count) tile.lanes = 0;
    const int64_t elements = tile.elements_per_channel();
    Vec<A> sum = Vec<A>::zero();
    tile.for_each_vector([&](int64_t i, auto lanes) { sum += load(x + i, lanes); });
    const Vec<A> mean = channel_sum<L>(sum) * Vec<A>::broadcast(A(1) / A(elements));
    // The mean's own rounding error, left in the sum of deviations, corrects both it and M2.
    Vec<A> m2 = Vec<A>::zero(), deviations = Vec<A>::zero();
    tile.for_each_vector([&](int64_t i, auto lanes) {
      const Vec<A> deviation = fill_lanes(load(x + i, lanes), mean, lanes) - mean;
      m2 += deviation * deviation;
      deviations += deviation;
    });
    const Vec<A> left = channel_sum<L>(deviations), correction = left * Vec<A>::broadcast(A(1) / A(elements));
    moments.merge(mean + correction, channel_sum<L>(m2) - left * correction, elements);
  } while (first < column.count);
}
