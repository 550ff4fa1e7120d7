// 1×1 convolutions of channels_last tensors on CPU: products of a matrix whose rows are pixels with a small matrix.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/dispatch.h"

namespace effnet_kernels::cpu {

// How the rows are cut, from the shape alone. A part is a run of pixels of one image; a chunk, which stays in L2 while
// it is worked on, is one part or several whole images. Weight gradients are summed per group of chunks.
struct RowChunks {
  int64_t images, pixels, part_rows, parts_per_image, parts_per_chunk, chunks_per_group;
  // So few rows that packing a weight, and a gradient of it for every group, takes longer than reading it as it lies and
  // one product of all rows for its gradient.
  bool few;

  static constexpr int64_t kChunkElements = 131072;
  static constexpr int64_t kFewElements = 5;  // per element of the weight; measured (docs/performance.md)

  // `columns`: elements of a row in all matrices that the chunk touches. `weights`: elements of the weight gradients.
  static RowChunks make(int64_t images, int64_t pixels, int64_t columns, int64_t weights) {
    const auto divide = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
    const int64_t rows = std::clamp<int64_t>(kChunkElements / columns, 64, 512);
    const int64_t parts_per_image = divide(pixels, rows);
    RowChunks c{images, pixels, divide(pixels, parts_per_image), parts_per_image, 1, 1, false};
    if (parts_per_image == 1 && images > 1) {
      // An even number, so that two threads have the same to do.
      const int64_t chunks = divide(images, std::max<int64_t>(1, rows / pixels));
      c.parts_per_chunk = divide(images, chunks + chunks % 2);
    }
    // A group costs a pass over its partial weight gradient, so that it must be worth it.
    const int64_t elements = images * pixels * columns;
    c.few = elements < kFewElements * weights;
    const int64_t groups = std::clamp<int64_t>(elements / (2 * weights + 1), 2, 16);
    c.chunks_per_group = std::max<int64_t>(1, divide(c.chunks(), groups));
    return c;
  }

  int64_t rows() const { return images * pixels; }
  int64_t parts() const { return images * parts_per_image; }
  int64_t chunks() const { return (parts() + parts_per_chunk - 1) / parts_per_chunk; }
  int64_t groups() const { return (chunks() + chunks_per_group - 1) / chunks_per_group; }

  int64_t image(int64_t part) const { return part / parts_per_image; }
  int64_t first_row(int64_t part) const { return image(part) * pixels + part % parts_per_image * part_rows; }
  int64_t part_size(int64_t part) const { return std::min(part_rows, pixels - part % parts_per_image * part_rows); }

  int64_t first_part(int64_t chunk) const { return chunk * parts_per_chunk; }
  int64_t last_part(int64_t chunk) const { return std::min(first_part(chunk + 1), parts()); }
  int64_t chunk_row(int64_t chunk) const { return first_part(chunk) < parts() ? first_row(first_part(chunk)) : rows(); }
  int64_t chunk_rows(int64_t chunk) const { return chunk_row(chunk + 1) - chunk_row(chunk); }
  int64_t most_rows() const { return parts_per_chunk * part_rows; }
  int64_t first_chunk(int64_t group) const { return group * chunks_per_group; }
  int64_t last_chunk(int64_t group) const { return std::min((group + 1) * chunks_per_group, chunks()); }
};

// out = x · Wᵀ, and, where not null, mean and m2 of out's columns per chunk, A[chunks, padded channels].
struct PointwiseForwardParams {
  DType dtype;
  RowChunks chunks;
  int64_t in_channels, out_channels;
  const void* x;
  const void* weight;  // packed: [in_channels, out_channels]
  void* out;
  void *mean, *m2;
};
void pointwise_forward(const PointwiseForwardParams&);

// aᵀ · b, a weight's gradient, by a pass of its own.
struct OuterProductParams {
  DType dtype;  // of the arrays: float32 or float64
  int64_t rows, a_columns, b_columns, a_row, b_row;
  const void *a, *b;
  void* out;  // A[a_columns, padded b_columns]

  // Threads have rows or columns of the result, whichever are more.
  static constexpr int64_t kBlock = 48;
  bool shares_rows() const { return a_columns >= b_columns; }
  int64_t blocks() const { return ((shares_rows() ? a_columns : b_columns) + kBlock - 1) / kBlock; }
};
void outer_product(const OuterProductParams&);

// dx = grad · W; per group, dW = gradᵀ · x.
struct PointwiseBackwardParams {
  DType dtype;
  RowChunks chunks;
  int64_t in_channels, out_channels;
  const void *grad, *x;
  const void* weight;  // [out_channels, in_channels], null where dx is not wanted
  bool packed;         // else the weight is as it lies, of whole vectors
  void* dx;
  void* dweight;  // A[groups, out_channels, padded in_channels]; null where it is not wanted
};
void pointwise_backward(const PointwiseBackwardParams&);

}  // namespace effnet_kernels::cpu
