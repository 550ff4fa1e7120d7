// A whole MBConv block in inference on CPU, over weights with BatchNorm folded in. Activations are channels_last;
// arithmetic and scratch are float32 whatever they are stored in. With `bfloat16_products` the matrices, and what they
// multiply, are bfloat16; sums stay float32.
#pragma once

#include <algorithm>

#include "common/cpu/packed_matrix.h"
#include "common/cpu/passes.h"
#include "depthwise_conv_bn_act/shape.h"

namespace effnet_kernels::cpu {

// Matrices are packed as in common/cpu/packed_matrix.h; vectors and the rows of `depthwise` have padded_channels values.
struct MBConvInferenceParams {
  DType dtype;
  DepthwiseShape shape;  // of the depthwise convolution
  int64_t in_channels, out_channels, squeezed;
  Activation activation, gate;
  bool residual;           // adds x
  bool bfloat16_products;  // of bfloat16 x with even numbers of channels
  const void* x;
  const float *expand, *expand_bias;                         // null: x is what the depthwise convolution reads
  const float *depthwise, *depthwise_bias;                   // [taps, channels]
  const float *reduce, *reduce_bias, *excite, *excite_bias;  // null: no squeeze-and-excite
  const float *project, *project_bias;
  void* out;

  int64_t row() const { return padded_channels(shape.channels); }

  // Blocks of channels that are expanded and convolved together: three of the widest vectors, as even as can be.
  static constexpr int64_t kBlockVectors = 3;
  int64_t vectors() const { return row() / kChannelPadding; }
  int64_t blocks() const { return (vectors() + kBlockVectors - 1) / kBlockVectors; }
  int64_t block_begin(int64_t block) const { return vectors() * block / blocks() * kChannelPadding; }

  // Rows of the output are cut into strips, by shape alone, so that few blocks occupy all threads; each has a sum of its
  // own for the pooling.
  int64_t strips() const {
    constexpr int64_t kUnits = 16, kLeastRows = 4;
    const int64_t wanted = (kUnits + blocks() - 1) / blocks(), most = shape.out_height / kLeastRows;
    return wanted < most ? wanted : most < 1 ? 1 : most;
  }
  int64_t strip_begin(int64_t strip) const { return shape.out_height * strip / strips(); }

  // A unit of work is a strip of a block. Of large maps they are counted strip after strip, so that a thread has rows of
  // its own, and what it writes is what it reads again; of small ones, whose rows at the edge of a strip would be expanded
  // by both, block after block.
  bool strips_are_outer() const {
    constexpr int64_t kRowsForOverlap = 28;
    return shape.out_height >= kRowsForOverlap;
  }

  // f(block, first strip, end) for the units from `begin` to `end`, the strips of a block together.
  template <class F>
  void for_each_block_of_units(int64_t begin, int64_t end, F f) const {
    const int64_t n = strips_are_outer() ? blocks() : strips();
    for (int64_t block = 0; block < blocks(); ++block) {
      const auto first_strip_from = [&](int64_t unit) {
        if (!strips_are_outer()) return std::clamp<int64_t>(unit - block * n, 0, n);
        return unit <= block ? 0 : (unit - block + n - 1) / n;
      };
      const int64_t first = first_strip_from(begin), last = first_strip_from(end);
      if (first < last) f(block, first, last);
    }
  }

  // The projection's units of work: rows of z, of which as many are multiplied together as stay in L2 while the weights
  // pass by, or, of an image of few rows, parts of the columns.
  ColumnParts columns() const { return ColumnParts(out_channels); }
  int64_t chunks_of(int64_t rows) const {
    constexpr int64_t kElements = 65536;
    return std::max<int64_t>(1, (rows * row() + kElements / 2) / kElements);
  }
  bool cuts_columns() const {
    constexpr int64_t kFewRows = 128;
    return shape.out_pixels() <= kFewRows && chunks_of(shape.out_pixels()) == 1;
  }
  int64_t project_units() const { return cuts_columns() ? columns().count() : shape.out_pixels(); }

  // Squeeze-and-excite's scale goes to whichever is smaller, z or a copy of the projection's weights.
  bool scales_weights() const { return reduce && shape.out_pixels() > padded_channels(out_channels); }
  int64_t project_size() const { return shape.channels * padded_channels(out_channels) / (bfloat16_products ? 2 : 1); }
};

// One image on its way through the block. T is what products multiply: float, or bfloat16.
struct MBConvImage {
  const void* stored;  // x as stored
  const void* x;       // the same as T
  void* z;             // T [out_pixels, row()]
  float* pooled;       // [strips, row()] sums of z; then their means, in the first row
  float* scale;
  float* scaled_project;  // where scales_weights()
  void* out;
};

void mbconv_inference(const MBConvInferenceParams&);

}  // namespace effnet_kernels::cpu
