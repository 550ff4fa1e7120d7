// Rows of a block of channels in scratch memory, and the arithmetic on them. A block is, in channels_last, up to
// DepthwiseUnits::kBlockChannels neighbouring channels (pixel after pixel, one vector per group of lanes), in NCHW one
// channel (vectors along the row). Both come down to the same loops: a tap is a source and a weight vector.
// Included per instruction set by foreach_capability.h.

inline constexpr int64_t kBlock = DepthwiseUnits::kBlockChannels;

// A block's channels, and where a row of an activation tensor has them.
template <class A, Layout L>
struct Block {
  static constexpr int size = Vec<A>::size;
  static constexpr int64_t pixel = L == Layout::nhwc ? kBlock : 1;  // scratch elements from one pixel to the next

  int64_t channels;  // of the tensor
  int64_t first;     // channel
  int64_t count;     // channels of the block

  static Block make(int64_t channels, int64_t block) {
    if constexpr (L == Layout::nchw) return {channels, block, 1};
    return {channels, block * kBlock, std::min(kBlock, channels - block * kBlock)};
  }

  int vectors() const { return int((count + size - 1) / size); }
  int64_t channel(int vector) const { return first + vector * size; }
  int lanes(int vector) const { return int(std::min<int64_t>(size, count - vector * size)); }

  // Element of the tensor where a row of the block starts.
  int64_t row(int64_t image, int64_t y, int64_t height, int64_t width) const {
    if constexpr (L == Layout::nhwc) return (image * height + y) * width * channels + first;
    return ((image * channels + first) * height + y) * width;
  }

  // A run of whole rows of the tensor as a column.
  Column<A, L> column(int64_t row_start, int64_t pixels, int vector) const {
    if constexpr (L == Layout::nhwc) {
      return {0, 0, channel(vector), row_start + vector * size, channels, pixels, lanes(vector)};
    }
    return {0, 0, first, row_start, size, pixels / size, int(pixels % size)};
  }

  // f(tensor element from the row's start, scratch element from the row's start, lanes) for one vector's pixels.
  template <class F>
  EK_INLINE void for_each_in_row(int64_t width, int vector, F f) const {
    if constexpr (L == Layout::nhwc) {
      const int64_t shift = vector * size;
      const int last = lanes(vector);
      if (last == size) {
        for (int64_t x = 0; x < width; ++x) f(x * channels + shift, x * kBlock + shift, AllLanes{});
      } else {
        for (int64_t x = 0; x < width; ++x) f(x * channels + shift, x * kBlock + shift, last);
      }
    } else {
      int64_t x = 0;
      for (; x + size <= width; x += size) f(x, x, AllLanes{});
      if (x < width) f(x, x, int(width - x));
    }
  }

  // Vectors that cover `pixels` neighbouring pixels of one row.
  static int64_t row_vectors(int64_t pixels) { return L == Layout::nhwc ? pixels : (pixels + size - 1) / size; }
};

// Stores to a scratch row. Scratch has room for every lane of a pixel's channels, but beyond the end of an NCHW row
// lies its zero margin.
template <Layout L, class A, class Lanes>
EK_INLINE void put(A* target, Vec<A> v, Lanes lanes) {
  if constexpr (L == Layout::nhwc) {
    store(target, v, AllLanes{});
  } else {
    store(target, v, lanes);
  }
}

// A zero-padded row that taps slide over with the convolution's stride. In NCHW with stride 2 even and odd positions
// lie apart, so that the taps of neighbouring outputs are neighbours in memory.
template <class A, Layout L>
struct PaddedRow {
  static constexpr int64_t pixel = Block<A, L>::pixel;

  int64_t stride, phase;  // phase: scratch elements from the even to the odd positions

  static PaddedRow make(int64_t positions, int64_t stride) {
    return {stride, L == Layout::nchw && stride == 2 ? (positions + 1) / 2 + 2 * Vec<A>::size : 0};
  }
  bool split() const { return phase > 0; }
  int64_t size(int64_t positions) const { return split() ? 2 * phase : positions * pixel + 2 * Vec<A>::size; }
  int64_t tap(int64_t position) const { return split() ? position % 2 * phase + position / 2 : position * pixel; }
  int64_t step() const { return L == Layout::nhwc ? stride * kBlock : Vec<A>::size; }

  // Moves a contiguous row of `positions` to its two halves.
  void split_from(const A* source, int64_t positions, A* target) const {
    for (int64_t i = 0; i < positions / 2; ++i) {
      target[i] = source[2 * i];
      target[phase + i] = source[2 * i + 1];
    }
    if (positions % 2) target[positions / 2] = source[positions - 1];
  }
};

template <class A>
struct Tap {
  const A *source, *weight;
};

// out[j] = Σ_t weight_t · source_t[j] for R vectors, kept in registers over all taps.
template <int R, class A>
EK_INLINE void apply_taps_to(const Tap<A>* taps, int count, int64_t shift, int64_t source_at, int64_t source_step,
                             A* out, int64_t out_step) {
  Vec<A> sums[R];
  for (int r = 0; r < R; ++r) sums[r] = Vec<A>::zero();
  for (int t = 0; t < count; ++t) {
    const Vec<A> weight = load(taps[t].weight + shift, AllLanes{});
    const A* const source = taps[t].source + shift + source_at;
    for (int r = 0; r < R; ++r) sums[r] += weight * load(source + r * source_step, AllLanes{});
  }
  for (int r = 0; r < R; ++r) store(out + r * out_step, sums[r], AllLanes{});
}

// out[j] = Σ_t weight_t · source_t[j] for `vectors` vectors; `shift` selects the vector of the block.
template <class A>
void apply_taps(const Tap<A>* taps, int count, int64_t shift, int64_t vectors, int64_t source_step, A* out,
                int64_t out_step) {
  int64_t j = 0;
  const auto run = [&](auto registers) {
    constexpr int R = registers();
    apply_taps_to<R>(taps, count, shift, j * source_step, source_step, out + j * out_step, out_step);
    j += R;
  };
  while (j + 8 <= vectors) run(Constant<8>{});
  if (vectors - j >= 4) run(Constant<4>{});
  if (vectors - j >= 2) run(Constant<2>{});
  if (vectors - j >= 1) run(Constant<1>{});
}

// dweight[kw] += Σ_j dy[j] · a[tap(kw) + j] for one kernel row, its K sums kept in registers.
template <int K, Layout L, class A>
void accumulate_weight_gradient(const A* dy, int64_t dy_step, const A* a, const PaddedRow<A, L>& row, int64_t vectors,
                                A* dweight, int64_t dweight_step) {
  Vec<A> sums[K];
  for (int k = 0; k < K; ++k) sums[k] = load(dweight + k * dweight_step, AllLanes{});
  const int64_t step = row.step();
  for (int64_t j = 0; j < vectors; ++j) {
    const Vec<A> g = load(dy + j * dy_step, AllLanes{});
    for (int k = 0; k < K; ++k) sums[k] += g * load(a + row.tap(k) + j * step, AllLanes{});
  }
  for (int k = 0; k < K; ++k) store(dweight + k * dweight_step, sums[k], AllLanes{});
}

// The block's weights, one vector per tap: the channels' own (channels_last), or one channel's in every lane (NCHW).
template <class A, Layout L>
struct BlockWeights {
  const A* first;
  int64_t step;  // from tap to tap

  static BlockWeights make(const A* weight, int64_t row, int taps, const Block<A, L>& block, A* scratch) {
    if constexpr (L == Layout::nhwc) return {weight + block.first, row};
    for (int t = 0; t < taps; ++t) {
      store(scratch + t * Vec<A>::size, Vec<A>::broadcast(weight[t * row + block.first]), AllLanes{});
    }
    return {scratch, Vec<A>::size};
  }
  const A* tap(int index) const { return first + index * step; }
};
