// A small matrix as multiply_rows (gemm.h) reads it, whatever the instruction set: columns in groups of kPackedColumns,
// zero-padded, each group [depth, kPackedColumns] in one piece.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/cpu/buffer.h"
#include "common/cpu/parallel.h"
#include "common/cpu/transpose.h"
#include "common/half.h"

namespace effnet_kernels::cpu {

inline constexpr int64_t kPackedColumns = 16;  // lanes of the widest vector

// Two neighbours along the depth of a product: an element of a matrix of bfloat16, whose depth is half as many pairs.
struct BFloat16Pair {
  BFloat16 values[2];
};

// The elements of `packed` from `column` on, row after row at a distance of kPackedColumns.
template <class A>
const A* packed_column(const A* packed, int64_t depth, int64_t column) {
  return packed + column / kPackedColumns * depth * kPackedColumns + column % kPackedColumns;
}

// The columns of a product in parts that threads share: an even number of them, as even as can be, none wider than a tile
// of gemm.h.
class ColumnParts {
 public:
  explicit ColumnParts(int64_t columns)
      : columns_(columns), groups_((columns + kPackedColumns - 1) / kPackedColumns), count_(parts_of(groups_)) {}

  int64_t count() const { return count_; }
  int64_t begin(int64_t part) const { return std::min(groups_ * part / count_ * kPackedColumns, columns_); }

 private:
  static int64_t parts_of(int64_t groups) {
    constexpr int64_t kMostGroups = 3;
    const int64_t parts = (groups + kMostGroups - 1) / kMostGroups;
    return groups < 2 ? groups : parts + parts % 2;
  }

  int64_t columns_, groups_, count_;
};

// A packed matrix from fill(target, first column, how many), which writes one group's columns; the others are zeros.
template <class A, class F>
Buffer<A> pack_groups(int64_t depth, int64_t columns, F fill) {
  const int64_t groups = (columns + kPackedColumns - 1) / kPackedColumns;
  Buffer<A> packed = Buffer<A>::unfilled(groups * depth * kPackedColumns);
  parallel_over(groups, depth * kPackedColumns, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * kPackedColumns, count = std::min(kPackedColumns, columns - first);
      A* const target = packed.data() + group * depth * kPackedColumns;
      if (count < kPackedColumns) std::fill_n(target, depth * kPackedColumns, A{});
      fill(target, first, count);
    }
  });
  return packed;
}

// A [depth, columns] whose rows are `row` apart, packed.
template <class A>
Buffer<A> pack_matrix(const A* values, int64_t row, int64_t depth, int64_t columns) {
  return pack_groups<A>(depth, columns, [&](A* target, int64_t first, int64_t count) {
    if (count == kPackedColumns) {
      // Of a size that the compiler knows, which a call for every 16 elements would not be worth.
      for (int64_t k = 0; k < depth; ++k) {
        std::memcpy(target + k * kPackedColumns, values + k * row + first, kPackedColumns * sizeof(A));
      }
      return;
    }
    for (int64_t k = 0; k < depth; ++k) std::copy_n(values + k * row + first, count, target + k * kPackedColumns);
  });
}

// The transpose of a [columns, depth] whose rows are `row` apart, packed.
template <class A>
Buffer<A> pack_transpose(const A* values, int64_t row, int64_t depth, int64_t columns) {
  return pack_groups<A>(depth, columns, [&](A* target, int64_t first, int64_t count) {
    transpose(values + first * row, row, count, depth, target, kPackedColumns);
  });
}

}  // namespace effnet_kernels::cpu
