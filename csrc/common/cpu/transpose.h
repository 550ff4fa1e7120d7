// A matrix in memory, transposed into another place, by squares of 4 × 4 in vectors.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace effnet_kernels::cpu {

template <class A>
struct Square {
  typedef A Row __attribute__((vector_size(4 * sizeof(A))));
  using Index = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  typedef Index Lanes __attribute__((vector_size(4 * sizeof(A))));

  static Row load(const A* from) {
    Row row;
    std::memcpy(&row, from, sizeof(row));
    return row;
  }

  static void transpose(const A* from, int64_t from_row, A* to, int64_t to_row) {
    const Row a = load(from), b = load(from + from_row), c = load(from + 2 * from_row), d = load(from + 3 * from_row);
    constexpr Lanes low = {0, 4, 1, 5}, high = {2, 6, 3, 7}, first = {0, 1, 4, 5}, last = {2, 3, 6, 7};
    const Row ab_low = __builtin_shuffle(a, b, low), ab_high = __builtin_shuffle(a, b, high);
    const Row cd_low = __builtin_shuffle(c, d, low), cd_high = __builtin_shuffle(c, d, high);
    const Row rows[4] = {__builtin_shuffle(ab_low, cd_low, first), __builtin_shuffle(ab_low, cd_low, last),
                         __builtin_shuffle(ab_high, cd_high, first), __builtin_shuffle(ab_high, cd_high, last)};
    for (int r = 0; r < 4; ++r) std::memcpy(to + r * to_row, &rows[r], sizeof(Row));
  }
};

// to [columns, rows] = the transpose of from [rows, columns], whose rows are from_row and to_row apart.
template <class A>
void transpose(const A* from, int64_t from_row, int64_t rows, int64_t columns, A* to, int64_t to_row) {
  const auto by_element = [&](int64_t first_row, int64_t first_column, int64_t last_column) {
    for (int64_t c = first_column; c < last_column; ++c) {
      for (int64_t r = first_row; r < rows; ++r) to[c * to_row + r] = from[r * from_row + c];
    }
  };
  const int64_t square_rows = rows / 4 * 4, square_columns = columns / 4 * 4;
  for (int64_t c = 0; c < square_columns; c += 4) {
    for (int64_t r = 0; r < square_rows; r += 4) {
      Square<A>::transpose(from + r * from_row + c, from_row, to + c * to_row + r, to_row);
    }
  }
  by_element(square_rows, 0, square_columns);
  by_element(0, square_columns, columns);
}

}  // namespace effnet_kernels::cpu
