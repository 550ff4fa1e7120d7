// NCHW: rows of one channel's plane in scratch memory, vectors along the row. Included per instruction set by
// foreach_capability.h.

// f(pixel, lanes) for the vectors along a row.
template <class A, class F>
EK_INLINE void for_each_in_row(int64_t width, F f) {
  constexpr int size = Vec<A>::size;
  int64_t x = 0;
  for (; x + size <= width; x += size) f(x, AllLanes{});
  if (x < width) f(x, int(width - x));
}

template <class A>
int64_t row_vectors(int64_t pixels) {
  return (pixels + Vec<A>::size - 1) / Vec<A>::size;
}

// A run of pixels of one plane as a column.
template <class A>
Column<A, Layout::nchw> plane_column(int64_t channel, int64_t start, int64_t pixels) {
  constexpr int size = Vec<A>::size;
  return {0, 0, channel, start, size, pixels / size, int(pixels % size)};
}

// A zero-padded row that taps slide over with the convolution's stride. With stride 2 even and odd positions lie apart,
// so that the taps of neighbouring outputs are neighbours in memory.
template <class A>
struct PaddedRow {
  int64_t stride, phase;  // phase: scratch elements from the even to the odd positions

  static PaddedRow make(int64_t positions, int64_t stride) {
    return {stride, stride == 2 ? (positions + 1) / 2 + 2 * Vec<A>::size : 0};
  }
  bool split() const { return phase > 0; }
  int64_t size(int64_t positions) const { return split() ? 2 * phase : positions + 2 * Vec<A>::size; }
  int64_t tap(int64_t position) const { return split() ? position % 2 * phase + position / 2 : position; }

  // Moves a contiguous row of `positions` to its two halves.
  void split_from(const A* source, int64_t positions, A* target) const {
    for (int64_t i = 0; i < positions / 2; ++i) {
      target[i] = source[2 * i];
      target[phase + i] = source[2 * i + 1];
    }
    if (positions % 2) target[positions / 2] = source[positions - 1];
  }
};

// A channel's weights, one vector per tap.
template <class A>
void broadcast_weights(const A* weight, int64_t row, int taps, int64_t channel, A* vectors) {
  for (int t = 0; t < taps; ++t) {
    store(vectors + t * Vec<A>::size, Vec<A>::broadcast(weight[t * row + channel]), AllLanes{});
  }
}
