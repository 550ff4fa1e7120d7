// The weight of a 1×1 convolution, (O, K, 1, 1), as the products read it, and its gradient back.
#pragma once

#include "common/cpu/channels.h"
#include "common/cpu/packed_matrix.h"
#include "pointwise_conv/cpu.h"

namespace effnet_kernels::cpu {

// [O, K] in the accumulator type: the parameter's own memory where it is dense and of that type.
template <class A>
class PointwiseWeight {
 public:
  explicit PointwiseWeight(const Tensor& w)
      : out_channels(w.size(0)), in_channels(w.numel() / std::max<int64_t>(1, w.size(0))), tensor_(w), copy_(0) {
    const bool direct = (sizeof(A) == 4 ? DType::float32 : DType::float64) == dtype_of(w);
    if (direct && w.is_contiguous()) return;
    copy_ = read_rows<A>(w, out_channels, in_channels);
  }

  // For x · Wᵀ.
  Buffer<A> packed_transposed() const { return pack_transpose(values(), row(), in_channels, out_channels); }
  // For grad · W.
  Buffer<A> packed() const { return pack_matrix(values(), row(), out_channels, in_channels); }

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

}  // namespace effnet_kernels::cpu
