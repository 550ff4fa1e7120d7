// A convolution in inference on CPU, with BatchNorm folded in: act(conv(x)) (+ residual), written in channels_last.
#pragma once

#include "common/cpu/packed_matrix.h"
#include "common/cpu/passes.h"

namespace effnet_kernels::cpu {

struct ConvInferenceParams {
  DType dtype;
  int64_t images, in_channels, height, width, out_channels, out_height, out_width;
  int64_t kernel_size, stride, top, left;
  Activation activation;
  const void* x;
  int64_t x_image, x_channel, x_row, x_column;  // strides
  bool bfloat16_products;                       // of plain x alone
  const float* weight;                          // packed [kernel_size · kernel_size · in_channels, out_channels]
  const float* bias;                            // padded_channels(out_channels)
  const void* residual;                         // of the shape of out, or null
  void* out;

  int64_t depth() const { return kernel_size * kernel_size * in_channels; }
  int64_t out_pixels() const { return out_height * out_width; }
  // x is a matrix of pixels as it lies in memory, in the type that is multiplied.
  bool plain() const {
    const auto is = [](int64_t size, int64_t stride, int64_t expected) { return size == 1 || stride == expected; };
    return (dtype == DType::float32 || bfloat16_products) && kernel_size == 1 && stride == 1 &&
           is(in_channels, x_channel, 1) && is(width, x_column, in_channels) &&
           is(height, x_row, width * in_channels) && is(images, x_image, height * width * in_channels);
  }

  // The work is cut into chunks of such pixels, of which a single one is cut into parts of the columns, else into rows of
  // the output.
  ColumnParts columns() const { return ColumnParts(out_channels); }
  int64_t chunk() const {
    constexpr int64_t kElements = 24576;
    const int64_t rows = kElements / in_channels / 8 * 8;
    return rows < 16 ? 16 : rows;
  }
  bool cuts_columns() const { return plain() && images * out_pixels() <= chunk(); }
  int64_t units() const {
    if (cuts_columns()) return images == 0 ? 0 : columns().count();
    return plain() ? (images * out_pixels() + chunk() - 1) / chunk() : images * out_height;
  }
  int64_t unit_elements() const {
    if (cuts_columns()) return images * out_pixels() * depth() * out_channels / 16 / columns().count();
    return (plain() ? chunk() : out_width) * depth() * out_channels / 16;
  }
};

void conv_inference(const ConvInferenceParams&);

}  // namespace effnet_kernels::cpu
