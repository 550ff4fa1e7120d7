// Rows of channels_last pixels: as matrices of the accumulator type, and walked in tiles. Included per instruction set.

// Rows of T as rows of A: the tensor's own memory where the types agree, else a copy in `scratch`.
template <class T, class A>
EK_INLINE const A* widened_rows(const T* rows, int64_t elements, Buffer<A>& scratch) {
  if constexpr (std::is_same_v<T, A>) {
    return rows;
  } else {
    constexpr int64_t size = Vec<A>::size;
    int64_t i = 0;
    for (; i + size <= elements; i += size) store(scratch.data() + i, load(rows + i, AllLanes{}), AllLanes{});
    if (i < elements) store(scratch.data() + i, load(rows + i, int(elements - i)), int(elements - i));
    return scratch.data();
  }
}
template <class T>
Buffer<accumulator_t<T>> widening_scratch(int64_t elements) {
  return Buffer<accumulator_t<T>>(std::is_same_v<T, accumulator_t<T>> ? 0 : elements);
}

// f(row, channel, lanes) over rows × channels as they lie in memory: any other order, even of four rows at a time, is not
// what the processor's prefetching foresees.
template <class A, class F>
EK_INLINE void for_each_vector_of_rows(int64_t rows, int64_t channels, F f) {
  for (int64_t row = 0; row < rows; ++row) {
    int64_t channel = 0;
    for (; channel + Vec<A>::size <= channels; channel += Vec<A>::size) f(row, channel, AllLanes{});
    if (channel < channels) f(row, channel, int(channels - channel));
  }
}
