// channels_last: a slice of neighbouring channels, whose rows are staged, convolved and written pixel after pixel, as
// they lie in memory; only the convolution itself goes along a row for one vector of channels, in scratch memory.
// Included per instruction set by foreach_capability.h.

template <class A>
struct Slice {
  static constexpr int size = Vec<A>::size;
  static constexpr int max_vectors = int(DepthwiseUnits::kMaxBlockChannels / size);

  int64_t channels;  // of the tensor
  int64_t first, count;
  int64_t pixel;  // scratch elements from one pixel to the next

  static Slice make(int64_t channels, const DepthwiseUnits& units, int64_t block) {
    const int64_t first = block * units.block_channels;
    return {channels, first, std::min(units.block_channels, channels - first), pixel_of(units)};
  }
  // An odd number of vectors: the pixels of a vector of channels share no set of the cache.
  static int64_t pixel_of(const DepthwiseUnits& units) { return ((units.block_channels + size - 1) / size | 1) * size; }

  int vectors() const { return int((count + size - 1) / size); }
  int64_t channel_of(int v) const { return first + v * size; }

  // Element of the tensor where a row of the slice starts.
  int64_t row(int64_t image, int64_t y, int64_t height, int64_t width) const {
    return (image * height + y) * width * channels + first;
  }

  // f(vector, tensor element and scratch element from the row's start, lanes) along a row.
  template <class F>
  EK_INLINE void for_each_in_row(int64_t width, F f) const {
    const int whole = int(count / size), tail = int(count % size);
    const int64_t tensor_step = channels, scratch_step = pixel;
    for (int64_t x = 0; x < width; ++x) {
      const int64_t in_tensor = x * tensor_step, in_scratch = x * scratch_step;
      for (int v = 0; v < whole; ++v) f(v, in_tensor + v * size, in_scratch + v * size, AllLanes{});
      if (tail > 0) f(whole, in_tensor + whole * size, in_scratch + whole * size, tail);
    }
  }

  // Prefetches the v-th of `vectors()` shares of a row of the tensor into the second-level cache: memory is read and
  // written while rows already in scratch are computed on.
  template <class T>
  EK_INLINE void prefetch(const T* row, int64_t width, int v) const {
    constexpr int64_t kLine = 64 / sizeof(T);
    const int64_t last = (v + 1) * width / vectors();
    for (int64_t x = v * width / vectors(); x < last; ++x) {
      for (int64_t c = 0; c < count; c += kLine) prefetch_line(row + x * channels + c);
    }
  }
};

// A vector as a tensor of T has it after store.
template <class T>
EK_INLINE Vec<accumulator_t<T>> stored(Vec<accumulator_t<T>> v) {
  if constexpr (std::is_same_v<T, accumulator_t<T>>) {
    return v;
  } else {
    T values[Vec<accumulator_t<T>>::size];
    store(values, v, AllLanes{});
    return load(values, AllLanes{});
  }
}
