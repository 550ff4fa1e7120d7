// A small matrix as multiply_rows (gemm.h) reads it, whatever the instruction set: columns in groups of kPackedColumns,
// zero-padded, each group [depth, kPackedColumns] in one piece.
#pragma once

#include <cstdint>

#include "common/cpu/buffer.h"
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

// value(k, column) for k < depth and column < columns, packed.
template <class A, class F>
Buffer<A> pack_matrix(int64_t depth, int64_t columns, F value) {
  const int64_t groups = (columns + kPackedColumns - 1) / kPackedColumns;
  Buffer<A> packed(groups * depth * kPackedColumns);
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = group * kPackedColumns;
    const int64_t count = columns - first < kPackedColumns ? columns - first : kPackedColumns;
    A* const target = packed.data() + group * depth * kPackedColumns;
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t c = 0; c < count; ++c) target[k * kPackedColumns + c] = value(k, first + c);
    }
  }
  return packed;
}

}  // namespace effnet_kernels::cpu
