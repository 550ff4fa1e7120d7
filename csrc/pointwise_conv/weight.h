// The weight of a 1×1 convolution, (O, K, 1, 1), as the products read it, and its gradient back.
#pragma once

#include "common/cpu/packed_matrix.h"
#include "common/cpu/parallel.h"
#include "common/cpu/tensor_rows.h"
#include "common/cpu/transpose.h"
#include "pointwise_conv/cpu.h"

namespace effnet_kernels::cpu {

// [O, K] for grad · W: packed, or the weight's own memory.
template <class A>
struct GradientWeight {
  Buffer<A> memory;
  const A* data;

  bool packed() const { return memory.size() > 0; }
};

// [O, K] in the accumulator type: the parameter's own memory where it is dense and of that type.
template <class A>
class PointwiseWeight {
 public:
  explicit PointwiseWeight(const Tensor& w)
      : out_channels(w.size(0)), in_channels(w.numel() / std::max<int64_t>(1, w.size(0))), tensor_(w), copy_(0) {
    if (!is_dense_of<A>(w)) copy_ = read_rows<A>(w, out_channels, in_channels);
  }

  // For x · Wᵀ.
  Buffer<A> packed_transposed() const { return pack_transpose(values(), row(), in_channels, out_channels); }
  // For grad · W, of few rows as it lies if that can be read in whole vectors.
  GradientWeight<A> for_gradient(bool few_rows) const {
    if (few_rows && in_channels == padded_channels(in_channels)) return {Buffer<A>(0), values()};
    Buffer<A> packed = pack_matrix(values(), row(), out_channels, in_channels);
    const A* const data = packed.data();
    return {std::move(packed), data};
  }

  const int64_t out_channels, in_channels;

 private:
  const A* values() const { return copy_.size() ? copy_.data() : static_cast<const A*>(tensor_.const_data_ptr()); }
  int64_t row() const { return copy_.size() ? padded_channels(in_channels) : in_channels; }

  Tensor tensor_;
  Buffer<A> copy_;
};

// For a weight gradient of `size` elements per group, which the passes write; where there is no group, the sum of none.
template <class A>
Buffer<A> weight_gradient_sums(const RowChunks& chunks, bool wanted, int64_t size) {
  if (!wanted) return Buffer<A>(0);
  return chunks.groups() == 0 ? Buffer<A>(size) : Buffer<A>::unfilled(chunks.groups() * size);
}

// aᵀ · b of all rows as the gradient of a weight [a_columns, b_columns].
template <class A>
Tensor outer_gradient(int64_t rows, const A* a, int64_t a_row, int64_t a_columns, const A* b, int64_t b_row,
                      int64_t b_columns, const Tensor& weight) {
  constexpr DType dtype = sizeof(A) == 4 ? DType::float32 : DType::float64;
  auto result = gradient_rows<A>(weight, a_columns, b_columns);
  outer_product({dtype, rows, a_columns, b_columns, a_row, b_row, a, b, result.data()});
  return result.tensor();
}

// first[begin, end) += Σ of the other groups' elements there.
template <class A>
void add_groups(Buffer<A>& groups, int64_t size, int64_t begin, int64_t end) {
  A* const first = groups.data();
  for (int64_t group = size; group < groups.size(); group += size) {
    for (int64_t i = begin; i < end; ++i) first[i] += first[group + i];
  }
}

// Σ of groups of [rows, padded columns], of which there is at least one, as the gradient of a weight [rows, columns].
template <class A>
Tensor summed_gradient(Buffer<A>& groups, int64_t rows, int64_t columns, const Tensor& weight) {
  const int64_t row = padded_channels(columns), size = rows * row;
  return written_gradient(weight, [&](const Tensor& dense) {
    dispatch_dtype(dtype_of(dense), [&](auto dtype) {
      using T = typename decltype(dtype)::type;
      T* const to = static_cast<T*>(dense.mutable_data_ptr());
      parallel_over(rows, groups.size() / rows, [&](int64_t begin, int64_t end) {
        add_groups(groups, size, begin * row, end * row);
        copy_rows(groups.data() + begin * row, end - begin, columns, to + begin * columns);
      });
    });
  });
}

// The same of a weight [columns, rows].
template <class A>
Tensor summed_transposed_gradient(Buffer<A>& groups, int64_t rows, int64_t columns, const Tensor& weight) {
  constexpr int64_t kBlock = 4 * kChannelPadding;  // columns: 256 bytes of a row
  const int64_t row = padded_channels(columns), size = rows * row;
  const auto run = [&](int64_t block, auto* to) {
    using T = std::remove_pointer_t<decltype(to)>;
    const int64_t first = block * kBlock, count = std::min(kBlock, columns - first);
    for (int64_t r = 0; r < rows; ++r) add_groups(groups, size, r * row + first, r * row + first + count);
    const A* const sums = groups.data() + first;
    if constexpr (std::is_same_v<T, A>) {
      transpose(sums, row, rows, count, to + first * rows, rows);
    } else {
      Buffer<A> transposed = Buffer<A>::unfilled(count * padded_channels(rows));
      transpose(sums, row, rows, count, transposed.data(), padded_channels(rows));
      copy_rows(transposed.data(), count, rows, to + first * rows);
    }
  };
  return written_gradient(weight, [&](const Tensor& dense) {
    dispatch_dtype(dtype_of(dense), [&](auto dtype) {
      auto* const to = static_cast<typename decltype(dtype)::type*>(dense.mutable_data_ptr());
      const int64_t blocks = (columns + kBlock - 1) / kBlock;
      parallel_over(blocks, kBlock * groups.size() / row, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) run(block, to);
      });
    });
  });
}

}  // namespace effnet_kernels::cpu
