// What the inference operators check of their input, and of weights that Python folded and packed.
#pragma once

#include <utility>

#include "common/checks.h"
#include "common/cpu/passes.h"

namespace effnet_kernels::cpu {

// Beyond it, products of two numbers of channels and a kernel's size might not be numbers any more.
inline constexpr int64_t kMostChannels = 1 << 22;

inline void check_channels(int64_t channels, int64_t least, const char* argument) {
  STD_TORCH_CHECK(channels >= least && channels <= kMostChannels, argument, ": expected ", least, " to ", kMostChannels,
                  ", got ", channels);
}

// A batch as a prepared layer reads it; strides in elements. An intermediate result has no tensor.
struct Activations {
  DType dtype;
  int64_t images, channels, height, width;
  int64_t image_stride, channel_stride, row_stride, column_stride;
  const void* data;

  // x of (N, C, H, W) and any strides.
  static Activations of(const Tensor& x) {
    STD_TORCH_CHECK(x.defined() && x.dim() == 4, "x: expected 4 dimensions (N, C, H, W)");
    STD_TORCH_CHECK(is_floating(x) && dtype_of(x) != DType::float64, "x: expected float32, float16 or bfloat16");
    STD_TORCH_CHECK(x.size(1) >= 1 && x.size(1) <= kMostChannels && x.size(2) >= 1 && x.size(3) >= 1,
                    "x: expected 1 to ", kMostChannels, " channels, and H and W of at least 1, got ", x.size(1), ", ",
                    x.size(2), ", ", x.size(3));
    return {dtype_of(x), x.size(0),   x.size(1),   x.size(2),   x.size(3),
            x.stride(0), x.stride(1), x.stride(2), x.stride(3), x.const_data_ptr()};
  }
  static Activations channels_last(DType dtype, int64_t images, int64_t channels, int64_t height, int64_t width) {
    return {dtype, images, channels, height, width, channels * width * height, 1, channels * width, channels, nullptr};
  }

  bool is_channels_last() const {
    const auto is = [](int64_t size, int64_t stride, int64_t expected) { return size == 1 || stride == expected; };
    return images == 0 || (is(channels, channel_stride, 1) && is(width, column_stride, channels) &&
                           is(height, row_stride, width * channels) && is(images, image_stride, pixels() * channels));
  }
  bool has_size_of(const Activations& other) const {
    return images == other.images && channels == other.channels && height == other.height && width == other.width;
  }
  int64_t pixels() const { return height * width; }
  int64_t element_size() const { return dtype == DType::float32 ? 4 : 2; }
  int64_t bytes() const {
    int64_t bytes = element_size();
    for (const int64_t size : {images, channels, height, width}) {
      STD_TORCH_CHECK(!__builtin_mul_overflow(bytes, size, &bytes), "x: too large");
    }
    return bytes;
  }
};

// One side of the output: of `size` pixels with margins of `before` and `after`.
inline int64_t prepared_output_size(int64_t size, int64_t kernel_size, int64_t stride, int64_t before, int64_t after) {
  for (const int64_t margin : {before, after}) {
    STD_TORCH_CHECK(margin >= 0 && margin < kernel_size, "padding: expected 0 to kernel_size - 1, got ", margin);
  }
  STD_TORCH_CHECK(size + before + after >= kernel_size, "x: smaller than the kernel");
  return (size + before + after - kernel_size) / stride + 1;
}

// The sections of the prepared weights, one after the other, as effnet_kernels/ops/prepared.py joins them.
class Sections {
 public:
  Sections(const Tensor& weights, const Tensor& like) : size_(weights.defined() ? weights.numel() : 0) {
    check_values(weights, size_, like, "weights");
    STD_TORCH_CHECK(weights.scalar_type() == ScalarType::Float && weights.is_contiguous(),
                    "weights: expected contiguous float32 values");
    first_ = static_cast<const float*>(weights.const_data_ptr());
  }

  const float* vector(int64_t size) {
    const int64_t begin = std::exchange(used_, used_ + padded_channels(size));
    STD_TORCH_CHECK(used_ <= size_, "weights: expected ", used_, " values or more, got ", size_);
    return first_ + begin;
  }
  // A matrix in packed_matrix.h's form.
  const float* matrix(int64_t depth, int64_t columns) { return vector(depth * padded_channels(columns)); }
  // One that products read.
  const float* factor(int64_t depth, int64_t columns, bool bfloat16_products) {
    return matrix(bfloat16_products ? depth / 2 : depth, columns);
  }
  void check_all_used() const { STD_TORCH_CHECK(used_ == size_, "weights: expected ", used_, " values, got ", size_); }

 private:
  const float* first_;
  int64_t size_, used_ = 0;
};

}  // namespace effnet_kernels::cpu
