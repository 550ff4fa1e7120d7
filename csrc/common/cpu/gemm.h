// Matrix products for 1×1 convolutions: tiles of kTileRows × kTileVectors vectors, kept in registers over the whole depth.
// Included per instruction set by foreach_capability.h.
//
// `multiply_rows`: rows of activations times a small packed matrix (forward, dgrad). `accumulate_outer`: Σ over rows of an
// outer product (wgrad), which is `multiply_as_they_lie` of a transpose. None copies an activation.

#if EK_VECTOR_BYTES == 64
inline constexpr int kTileRows = 8;  // 24 sums, 3 vectors and a broadcast in 32 registers
#else
inline constexpr int kTileRows = 4;  // 12 sums, 3 vectors and a broadcast in 16 registers
#endif
inline constexpr int kTileVectors = 3;

// Memory that will be read or written after a product, brought into the second-level cache while the product, which needs
// the arithmetic alone, is computed: some of it after every tile.
class Ahead {
 public:
  // Spread over `tiles` tiles.
  explicit Ahead(int64_t tiles) : tiles_(std::max<int64_t>(1, tiles)) {}

  template <class T>
  void add(const T* begin, int64_t elements) {
    const int64_t lines = (elements * int64_t(sizeof(T)) + kLine - 1) / kLine;
    const char* const first = reinterpret_cast<const char*>(begin);
    ranges_[count_++] = {first, first + lines * kLine, (lines + tiles_ - 1) / tiles_ * kLine};
  }

  EK_INLINE void fetch() {
    for (int i = 0; i < count_; ++i) {
      Range& range = ranges_[i];
      const char* const stop = std::min(range.next + range.step, range.end);
      for (; range.next < stop; range.next += kLine) prefetch_line(range.next);
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  struct Range {
    const char *next, *end;
    int64_t step;
  };

  int64_t tiles_;
  int count_ = 0;
  Range ranges_[2];
};
struct NothingAhead {
  EK_INLINE void fetch() {}
};

// How many tiles a product of `rows` × `columns` has, about.
template <class A>
int64_t tiles_of_product(int64_t rows, int64_t columns) {
  constexpr int64_t width = kTileVectors * Vec<A>::size;
  return (rows + kTileRows - 1) / kTileRows * ((columns + width - 1) / width);
}

// f(Constant<V>, first column) for tiles of at most kTileVectors vectors, as even as can be.
template <class A, class F>
EK_INLINE void for_each_tile_of_columns(int64_t columns, F f) {
  int64_t vectors = (columns + Vec<A>::size - 1) / Vec<A>::size;
  int64_t tiles = (vectors + kTileVectors - 1) / kTileVectors;
  for (int64_t column = 0; tiles > 0; --tiles) {
    const int64_t width = (vectors + tiles - 1) / tiles;
    if (width == 1) f(Constant<1>{}, column);
    if (width == 2) f(Constant<2>{}, column);
    if (width == 3) f(Constant<3>{}, column);
    column += width * Vec<A>::size;
    vectors -= width;
  }
}

// The lanes of a tile's last vector that are columns.
template <int V, class A>
EK_INLINE int last_lanes(int64_t columns, int64_t column) {
  return int(std::min<int64_t>(Vec<A>::size, columns - column - (V - 1) * Vec<A>::size));
}

// What a product reads of either side, and how it sums. `Left` is one element, broadcast; `Right` a vector of columns.
template <class E>
struct Factors {
  using Sum = Vec<E>;
  using Left = Vec<E>;
  using Right = Vec<E>;
  static EK_INLINE Left left(const E* p) { return Vec<E>::broadcast(*p); }
  static EK_INLINE Right right(const E* p) { return load(p, AllLanes{}); }
  static EK_INLINE void accumulate(Sum& sum, Left a, Right b) { sum += a * b; }
};

// Both products of a pair are added to one sum in float32.
template <>
struct Factors<BFloat16Pair> {
  using Sum = Vec<float>;
  using Bits = Vec<float>::mask_t;
#ifdef EK_BFLOAT16_INSTRUCTIONS
  using Left = Bits;
  using Right = Bits;
  static EK_INLINE Left left(const BFloat16Pair* p) { return broadcast(p); }
  static EK_INLINE Right right(const BFloat16Pair* p) { return bits(p); }
  static EK_INLINE void accumulate(Sum& sum, Left a, Right b) {
    sum.raw = (Vec<float>::raw_t)_mm512_dpbf16_ps((__m512)sum.raw, (__m512bh)a, (__m512bh)b);
  }
#else
  struct Left {
    Vec<float> first, second;
  };
  using Right = Left;
  static EK_INLINE Left left(const BFloat16Pair* p) { return widen(broadcast(p)); }
  static EK_INLINE Right right(const BFloat16Pair* p) { return widen(bits(p)); }
  static EK_INLINE void accumulate(Sum& sum, Left a, Right b) {
    sum += a.first * b.first;
    sum += a.second * b.second;
  }
#endif

 private:
  static EK_INLINE Bits broadcast(const BFloat16Pair* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof(pair));
    return pair - Bits{};
  }
  static EK_INLINE Bits bits(const BFloat16Pair* p) {
    Bits pairs;
    std::memcpy(&pairs, p, sizeof(pairs));
    return pairs;
  }
#ifndef EK_BFLOAT16_INSTRUCTIONS
  static EK_INLINE Left widen(Bits pairs) {
    const Bits first = pairs << 16, second = pairs & -65536;
    Left values;
    std::memcpy(&values.first, &first, sizeof(first));
    std::memcpy(&values.second, &second, sizeof(second));
    return values;
  }
#endif
};

// What a product's later tiles read, brought into the cache in the steps of an earlier one, whose arithmetic leaves places
// for loads: a group of the next columns beside each of the first tiles of rows, the next rows beside the tiles of the
// first columns. Behind the last columns and rows is what the caller reads next, or nothing that prefetching would harm.
// A distance of 0 stands for nothing to fetch.
template <class E>
struct Later {
  const E* columns;
  int64_t columns_step;
  const E* rows;
  int64_t rows_step;

  EK_INLINE void fetch() {
    prefetch_line(columns);
    prefetch_line(rows);
    columns += columns_step;
    rows += rows_step;
  }
};
struct NothingLater {
  EK_INLINE void fetch() {}
};

// The value is not known to the compiler from here on, so that what depends on it is computed where it is used: as part of
// an address, which costs nothing. Of a tile's addresses it would else keep every multiple of a distance, for which there
// are not enough registers; it then takes them out of vector registers, in place of products.
EK_INLINE void hide(int64_t& value) { asm("" : "+r"(value)); }

// One element in each of R rows at equal distances. Two pointers and two distances make all addresses of eight rows.
template <class E>
struct TileRows {
  int64_t distance, three;  // in bytes

  explicit EK_INLINE TileRows(int64_t row) : distance(row * int64_t(sizeof(E))), three(3 * distance) {}

  EK_INLINE void hide_distances() {
    hide(distance);
    hide(three);
  }
  EK_INLINE const E* row(const E* first, const E* second, int r) const {
    const int64_t even = r < 2 ? 0 : r < 4 ? 2 * distance : r < 6 ? 4 * distance : 2 * three;
    if (r == 3) return at(first, three);
    return at(r % 2 ? second : first, even);
  }
  EK_INLINE const E* second(const E* first) const { return at(first, distance); }

 private:
  static EK_INLINE const E* at(const E* p, int64_t bytes) {
    return reinterpret_cast<const E*>(reinterpret_cast<const char*>(p) + bytes);
  }
};

// V neighbouring vectors of columns in a packed matrix (packed_matrix.h).
template <int V, class E>
class PackedVectors {
 public:
  EK_INLINE PackedVectors(const E* packed, int64_t depth, int64_t column)
      : distance_(depth * kPackedColumns * int64_t(sizeof(E))) {
    for (int v = 0; v < kPointers; ++v) next_[v] = packed_column(packed, depth, column + v * kLanes);
  }

  EK_INLINE typename Factors<E>::Right vector(int v) const {
    if constexpr (!kOfGroups) return Factors<E>::right(next_[v]);
    return Factors<E>::right(reinterpret_cast<const E*>(reinterpret_cast<const char*>(next_[0]) + v * distance_));
  }
  EK_INLINE void step() {
    for (int v = 0; v < kPointers; ++v) next_[v] += kPackedColumns;
  }
  EK_INLINE void hide_distances() { hide(distance_); }

 private:
  static constexpr int kLanes = Factors<E>::Sum::size;
  static constexpr bool kOfGroups = kLanes == kPackedColumns;  // a vector is a group
  static constexpr int kPointers = kOfGroups ? 1 : V;

  const E* next_[kPointers];
  int64_t distance_;  // of two groups, in bytes
};

// The same where rows of columns lie in memory, the last vector with `lanes` lanes.
template <int V, class A, class Lanes>
class LyingVectors {
 public:
  EK_INLINE LyingVectors(const A* first, int64_t row, Lanes lanes) : next_(first), row_(row), lanes_(lanes) {}

  EK_INLINE Vec<A> vector(int v) const {
    const A* const p = next_ + v * Vec<A>::size;
    return v + 1 < V ? load(p, AllLanes{}) : load(p, lanes_);
  }
  EK_INLINE void step() { next_ += row_; }
  EK_INLINE void hide_distances() {}

 private:
  const A* next_;
  int64_t row_;
  Lanes lanes_;
};

// sums[r][v] += Σ_k (element k of row r, at offset(k)) · (vector v of row k of `columns`).
template <int R, int V, class E, class Offset, class Columns, class LaterReads>
EK_INLINE void accumulate_tile(const E* a, int64_t a_row, Offset offset, Columns columns, int64_t depth,
                               LaterReads later, typename Factors<E>::Sum (&sums)[R][V]) {
  using F = Factors<E>;
  TileRows<E> rows(a_row);
  for (int64_t k = 0; k < depth; ++k) {
    rows.hide_distances();
    columns.hide_distances();
    const E *const first = a + offset(k), *const second = rows.second(first);
    typename F::Right right[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) right[v] = columns.vector(v);
    later.fetch();
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename F::Left left = F::left(rows.row(first, second, r));
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) F::accumulate(sums[r][v], left, right[v]);
    }
    columns.step();
  }
}

// One tile of multiply_rows: R rows times V vectors of columns, the last of `lanes` lanes.
template <int R, int V, class E, class Offset, class Epilogue>
EK_INLINE void multiply_row_tile(const E* a, int64_t a_row, Offset offset, const E* packed, int64_t depth, int64_t row,
                                 int64_t column, int lanes, const Later<E>& later, const Epilogue& kept) {
  using Sum = typename Factors<E>::Sum;
  Sum sums[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[r][v] = Sum::zero();
  }
  accumulate_tile<R, V>(a + row * a_row, a_row, offset, PackedVectors<V, E>(packed, depth, column), depth, later, sums);
  // What it captures would be read again after every store.
  const Epilogue epilogue = kept;
  const int64_t last = column + (V - 1) * Sum::size;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v + 1 < V; ++v) epilogue(row + r, column + v * Sum::size, sums[r][v], AllLanes{});
  }
  if (lanes == Sum::size) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) epilogue(row + r, last, sums[r][V - 1], AllLanes{});
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) epilogue(row + r, last, sums[r][V - 1], lanes);
  }
}

// f(Constant<R>, first row) for tiles of R rows: kTileRows or one less where that comes out even, as it does for all but
// small numbers of rows.
template <class F>
EK_INLINE void for_each_tile_of_rows(int64_t rows, F f) {
  constexpr int R = kTileRows;
  const int64_t tiles = (rows + R - 1) / R, shorter = tiles * R - rows;  // tiles of R - 1
  int64_t row = 0;
  if (shorter <= tiles) {
    for (int64_t tile = shorter; tile < tiles; ++tile, row += R) f(Constant<R>{}, row);
    for (; row < rows; row += R - 1) f(Constant<R - 1>{}, row);
    return;
  }
  for (; row + R <= rows; row += R) f(Constant<R>{}, row);
  for (; row + R / 2 <= rows; row += R / 2) f(Constant<R / 2>{}, row);
  for (; row < rows; ++row) f(Constant<1>{}, row);
}

// Rows of `depth` elements, element k at offset(k), times `packed` (packed_matrix.h): epilogue(row, column, sum, lanes)
// for every vector of the product.
template <class E, class Offset, class Epilogue, class MemoryAhead = NothingAhead>
EK_INLINE void multiply_rows_at(const E* a, int64_t a_row, Offset offset, int64_t rows, const E* packed, int64_t depth,
                                int64_t columns, Epilogue epilogue, MemoryAhead&& ahead = {}) {
  using A = typename Factors<E>::Sum::value_type;
  for_each_tile_of_columns<A>(columns, [&](auto width, int64_t column) {
    constexpr int V = width();
    const int lanes = last_lanes<V, A>(columns, column);
    const int64_t next = column + V * Vec<A>::size;
    for_each_tile_of_rows(rows, [&](auto count, int64_t row) {
      constexpr int R = count();
      const int64_t group = row / kTileRows;
      Later<E> later{packed, 0, packed, 0};
      if (group < kTileVectors) {
        later.columns = packed_column(packed, depth, next + group * kPackedColumns);
        later.columns_step = kPackedColumns;
      }
      if (column == 0) {
        later.rows = a + (row + R) * a_row;
        later.rows_step = R;
      }
      multiply_row_tile<R, V>(a, a_row, offset, packed, depth, row, column, lanes, later, epilogue);
      ahead.fetch();
    });
  });
}

// The same for a [rows, depth] as it lies in memory.
template <class E, class Epilogue, class MemoryAhead = NothingAhead>
EK_INLINE void multiply_rows(const E* a, int64_t a_row, int64_t rows, const E* packed, int64_t depth, int64_t columns,
                             Epilogue epilogue, MemoryAhead&& ahead = {}) {
  multiply_rows_at(a, a_row, [](int64_t k) { return k; }, rows, packed, depth, columns, epilogue, ahead);
}

// The product as rows of T in memory, `columns` apart.
template <class T, class A, class MemoryAhead = NothingAhead>
void store_product(const A* a, int64_t a_row, int64_t rows, const A* packed, int64_t depth, int64_t columns, T* out,
                   MemoryAhead&& ahead = {}) {
  const auto store_vector = [out, columns](int64_t row, int64_t column, Vec<A> sum, auto lanes) {
    store(out + row * columns + column, sum, lanes);
  };
  multiply_rows<A>(a, a_row, rows, packed, depth, columns, store_vector, ahead);
}

// One tile of multiply_as_they_lie.
template <int R, int V, class A, class Lanes>
EK_INLINE void multiply_lying_tile(const A* a, int64_t a_row, int64_t a_step, const A* b, int64_t b_row, Lanes lanes,
                                   int64_t depth, A* out, int64_t out_row, bool adds) {
  Vec<A> sums[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      sums[r][v] = adds ? load(out + r * out_row + v * Vec<A>::size, AllLanes{}) : Vec<A>::zero();
    }
  }
  accumulate_tile<R, V>(
      a, a_row, [a_step](int64_t k) { return k * a_step; }, LyingVectors<V, A, Lanes>(b, b_row, lanes), depth,
      NothingLater{}, sums);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(out + r * out_row + v * Vec<A>::size, sums[r][v], AllLanes{});
  }
}

// out [rows, padded columns] = a · b, for a [rows, depth], whose element (r, k) is at r · a_row + k · a_step, and
// b [depth, columns] as it lies; added to what is there where `adds`.
template <class A, class MemoryAhead = NothingAhead>
void multiply_as_they_lie(const A* a, int64_t a_row, int64_t a_step, int64_t rows, const A* b, int64_t b_row,
                          int64_t columns, int64_t depth, A* out, int64_t out_row, bool adds,
                          MemoryAhead&& ahead = {}) {
  for_each_tile_of_columns<A>(columns, [&](auto width, int64_t column) {
    constexpr int V = width();
    const int lanes = last_lanes<V, A>(columns, column);
    for_each_tile_of_rows(rows, [&](auto count, int64_t row) {
      constexpr int R = count();
      const A* const left = a + row * a_row;
      A* const target = out + row * out_row + column;
      if (lanes == Vec<A>::size) {
        multiply_lying_tile<R, V>(left, a_row, a_step, b + column, b_row, AllLanes{}, depth, target, out_row, adds);
      } else {
        multiply_lying_tile<R, V>(left, a_row, a_step, b + column, b_row, lanes, depth, target, out_row, adds);
      }
      ahead.fetch();
    });
  });
}

// a · w as rows of T, `columns` apart; w [depth, columns] is packed, or lies in memory in whole vectors, which is for A.
template <class T, class A, class MemoryAhead = NothingAhead>
void store_gradient(const A* a, int64_t a_row, int64_t rows, const A* w, bool packed, int64_t depth, int64_t columns,
                    T* out, MemoryAhead&& ahead = {}) {
  if constexpr (std::is_same_v<T, A>) {
    if (!packed) {
      return multiply_as_they_lie(a, a_row, 1, rows, w, columns, columns, depth, out, columns, false, ahead);
    }
  }
  store_product(a, a_row, rows, w, depth, columns, out, ahead);
}

// out [a_columns, padded b_columns] = Σ_rows aᵀ b, for a [rows, a_columns] and b [rows, b_columns]; added to what is
// there where `adds`.
template <class A, class MemoryAhead = NothingAhead>
void accumulate_outer(const A* a, int64_t a_row, int64_t a_columns, const A* b, int64_t b_row, int64_t b_columns,
                      int64_t rows, A* out, int64_t out_row, bool adds, MemoryAhead&& ahead = {}) {
  multiply_as_they_lie(a, 1, a_row, a_columns, b, b_row, b_columns, rows, out, out_row, adds, ahead);
}
