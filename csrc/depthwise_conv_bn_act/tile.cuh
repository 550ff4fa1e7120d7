// A depthwise block's place in the tensors, and its rows on their way between global and shared memory.
#pragma once

#include "common/cuda/batch_norm.cuh"
#include "common/cuda/copy.cuh"
#include "depthwise_conv_bn_act/cuda.h"

namespace effnet_kernels::cuda {

inline constexpr int kDepthwiseThreads = 256;

// Which block and which thread this is.
struct Place {
  int part, piece;  // of the statistics or gradients; of an image
  int first_image, images;
  int first_channel, channel;  // of the block, of the thread
  int own;                     // the thread's channel within the block
  int column_thread;
  int tile, strip;
  bool live;  // the thread's channel exists

  template <Layout layout>
  static EK_DEVICE Place here(const DepthwisePlan& p) {
    Place at;
    const int block = int(blockIdx.x), thread = int(threadIdx.x);
    const int slices = int(p.slices), tiles = int(p.tiles), strips = int(p.strips);
    at.first_channel = block % slices * p.channels;
    at.part = block / slices;
    at.tile = at.part % tiles;
    at.strip = at.part / tiles % strips;
    at.piece = at.part % (tiles * strips);
    at.first_image = at.part / (tiles * strips) * p.images_per_block;
    const int left = int(p.shape.images) - at.first_image;
    at.images = left < p.images_per_block ? left : p.images_per_block;
    at.own = layout == Layout::nhwc ? thread % p.channels : thread / p.column_threads;
    at.column_thread = layout == Layout::nhwc ? thread / p.channels : thread % p.column_threads;
    at.channel = at.first_channel + at.own;
    at.live = at.channel < int(p.shape.channels);
    return at;
  }
};

// The threads of a block that share a channel, for reduce().
template <Layout layout>
EK_DEVICE int channel_stride(const DepthwisePlan& p) {
  return layout == Layout::nhwc ? p.channels : 1;
}

// One tensor, as the tiles see it.
struct Image {
  int channels, height, width;

  // Image n's place in the tensor, in elements; within it offsets are 32-bit.
  EK_DEVICE int64_t offset(int n) const { return int64_t(n) * channels * height * width; }
};

// Cells of an image: rows [row, row_end) and columns [column, column_end), all within the image.
struct Window {
  int row, row_end, column, column_end;

  static EK_DEVICE Window within(const Image& image, int row, int rows, int column, int columns) {
    const auto clamp = [](int value, int limit) { return value < 0 ? 0 : value > limit ? limit : value; };
    return {clamp(row, image.height), clamp(row + rows, image.height), clamp(column, image.width),
            clamp(column + columns, image.width)};
  }
  EK_DEVICE bool empty() const { return row >= row_end || column >= column_end; }
};

// f(offset of the vector in image n, its lanes, plane, row, the vector's first element counted from the run's first) for
// every vector of the NCHW planes' runs in `window`. A run is a plane's rows where they are whole, else one row.
template <class T, class F>
EK_DEVICE void each_run_vector(const Image& image, int n, int first_channel, int channels, const Window& window,
                               bool whole_rows, bool aligned, F f) {
  constexpr int kVec = kVector<T>;
  const int rows = window.row_end - window.row, columns = window.column_end - window.column;
  const int length = whole_rows ? rows * image.width : columns;
  const int vectors = (length + kVec - 1) / kVec + 1;  // a run may begin anywhere in a vector
  const int runs = whole_rows ? channels : channels * rows;
#pragma unroll 1
  for (int i = int(threadIdx.x); i < runs * vectors; i += int(blockDim.x)) {
    const int run = i / vectors, vector = i - run * vectors;
    const int plane = whole_rows ? run : run / rows;
    if (first_channel + plane >= image.channels) continue;
    const int row = window.row + (whole_rows ? 0 : run - plane * rows);
    const int begin = ((first_channel + plane) * image.height + row) * image.width + (whole_rows ? 0 : window.column);
    const int misaligned = int((uint32_t(image.offset(n)) + uint32_t(begin)) % kVec);
    const int from = vector * kVec - misaligned;
    const int left = length - from;
    if (left <= 0) continue;
    f(begin + from, lanes_of<T>(-from, left < kVec ? left : kVec, aligned), plane, row, from);
  }
}

// f(offset of the vector in an image, its lanes, row, column, first channel within the block) for every vector of the
// channels_last pixels in `window`.
template <class T, class F>
EK_DEVICE void each_pixel_vector(const Image& image, int first_channel, int channels, const Window& window,
                                 bool aligned, F f) {
  constexpr int kVec = kVector<T>;
  const int vectors = (channels + kVec - 1) / kVec, columns = window.column_end - window.column;
  const int count = (window.row_end - window.row) * columns * vectors;
#pragma unroll 1
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) {
    const int pixel = i / vectors, channel = (i - pixel * vectors) * kVec;
    const int rest = image.channels - first_channel - channel;
    if (rest <= 0) continue;
    const int row = window.row + pixel / columns, column = window.column + pixel % columns;
    const int at = (row * image.width + column) * image.channels + first_channel + channel;
    f(at, lanes_of<T>(0, rest < kVec ? rest : kVec, aligned), row, column, channel);
  }
}

// A stage's raw values: cell (0, 0) of the tile is image cell (row, column).
template <class T, Layout layout>
struct Stage {
  const RawTile& tile;
  Image image;
  bool whole_rows;
  T* raw;
  int n, first_channel;
  int row, column;
  Window window;

  EK_DEVICE void copy_from(const T* tensor, bool aligned) const {
    if (window.empty()) return;
    const T* const x = tensor + image.offset(n);
    if constexpr (layout == Layout::nhwc) {
      each_pixel_vector<T>(image, first_channel, tile.channels, window, aligned,
                           [&](int at, Lanes lanes, int r, int c, int channel) {
                             T* const to = raw + ((r - row) * tile.columns + c - column) * tile.pitch + channel;
                             copy(to, x + at, lanes);
                           });
    } else {
      each_run_vector<T>(image, n, first_channel, tile.channels, window, whole_rows, aligned,
                         [&](int at, Lanes lanes, int plane, int r, int from) {
                           const int run = whole_rows ? plane : plane * tile.rows + r - row;
                           copy(raw + run * tile.pitch + from + misaligned(plane, r), x + at, lanes);
                         });
    }
  }

  // NCHW: where in a vector of 16 bytes the run of (plane, image row r) begins.
  EK_DEVICE int misaligned(int plane, int r) const {
    const int begin = ((first_channel + plane) * image.height + r) * image.width + (whole_rows ? 0 : window.column);
    return int((uint32_t(image.offset(n)) + uint32_t(begin)) % kVector<T>);
  }

  // The cells of image row r in the block's channel `own`: column c is at `kStep` · c.
  EK_DEVICE const T* cells(int own, int r) const {
    if constexpr (layout == Layout::nhwc) {
      return raw + ((r - row) * tile.columns - column) * tile.pitch + own;
    } else if (whole_rows) {
      return raw + own * tile.pitch + misaligned(own, window.row) + (r - window.row) * image.width;
    } else {
      return raw + (own * tile.rows + r - row) * tile.pitch + misaligned(own, r) - window.column;
    }
  }
  EK_DEVICE int step() const { return layout == Layout::nhwc ? tile.pitch : 1; }
};

// Float values per (channel of the block, row, column).
template <Layout layout>
struct Cells {
  float* values;
  int rows, columns, channels;

  EK_DEVICE int step() const { return layout == Layout::nhwc ? channels : 1; }
  EK_DEVICE float* row(int own, int r) const {
    return layout == Layout::nhwc ? values + r * columns * channels + own : values + (own * rows + r) * columns;
  }
};

// Writes `window` of the image; cell (0, 0) of `cells` is image cell (row, column).
template <class T, Layout layout>
EK_DEVICE void write_window(T* tensor, const Cells<layout>& cells, const Image& image, int n, int first_channel,
                            int row, int column, const Window& window, bool aligned) {
  if (window.empty()) return;
  T* const x = tensor + image.offset(n);
  if constexpr (layout == Layout::nhwc) {
    each_pixel_vector<T>(image, first_channel, cells.channels, window, aligned,
                         [&](int at, Lanes lanes, int r, int c, int channel) {
                           const float* from = cells.row(channel, r - row) + (c - column) * cells.channels;
                           Vec<T> vec;
#pragma unroll
                           for (int q = 0; q < vec.quads; ++q) {
                             const float4 quad = load_shared(reinterpret_cast<const float4*>(from) + q);
                             vec.set(q, {quad.x, quad.y, quad.z, quad.w});
                           }
                           store(x + at, vec, lanes);
                         });
  } else {
    const bool whole_rows = window.column_end - window.column == image.width;
    each_run_vector<T>(image, n, first_channel, cells.channels, window, whole_rows, aligned,
                       [&](int at, Lanes lanes, int plane, int r, int from) {
                         int c = window.column;
                         // The vector's first element, which a partial first vector does not have.
                         const int first = lanes.whole || lanes.first < 0 ? 0 : lanes.first;
                         if (whole_rows) {
                           r += (from + first) / image.width;
                           c = (from + first) % image.width;
                         } else {
                           c += from + first;
                         }
                         Vec<T> vec{};
#pragma unroll
                         for (int q = 0; q < vec.quads; ++q) {
                           float quad[4] = {};
#pragma unroll
                           for (int j = 0; j < 4; ++j) {
                             if (4 * q + j < first || !lanes.contains(4 * q + j)) continue;
                             quad[j] = load_shared(cells.row(plane, r - row) + c - column);
                             if (++c == window.column_end) {
                               c = window.column;
                               ++r;
                             }
                           }
                           vec.set(q, quad);
                         }
                         store(x + at, vec, lanes);
                       });
  }
}

}  // namespace effnet_kernels::cuda
