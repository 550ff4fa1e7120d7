// How the depthwise kernels are cut into blocks. Shared by the launcher and by Python; no CUDA in it.
//
// A block takes some channels, a tile of columns and a strip of rows, and slides down the strip, stage by stage, for one
// image after another. Its threads stand as channels × columns; each keeps a few neighbouring columns in registers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "batch_norm_act/plan.h"
#include "common/cuda/device.h"
#include "depthwise_conv_bn_act/shape.h"

namespace effnet_kernels::cuda {

// A stage's copy of one tensor in shared memory, as it is in global memory: `rows` × `columns` cells of the block's
// channels. NCHW: planes, or rows of planes where the tile is narrower than the image, each with room to begin anywhere
// in a vector of 16 bytes.
struct RawTile {
  int rows, columns, channels;
  int pitch;  // elements of a run: NCHW a plane's or a row's, channels_last a pixel's
  int elements;
};

struct DepthwisePlan {
  Layout layout;
  bool aligned, backward;
  DepthwiseShape shape;
  int channels, column_threads;  // of a block
  int tile_columns;              // forward: output columns; backward: input columns, counted from −left
  int strip_rows;                // forward: output rows; backward: groups of `stride` input rows, counted from −top
  int stage_rows;                // rows of y in a stage
  int images_per_block;
  int64_t slices, tiles, strips, groups;
  RawTile in, out;   // forward: the rows of x, and none; backward: those of x, and of grad and y
  int line_columns;  // of the transformed rows in shared memory, with halo
  int shared_bytes;

  EK_HOST_DEVICE int threads() const { return channels * column_threads; }
  // Parts with a row of partial results each: statistics of y, or gradients.
  EK_HOST_DEVICE int64_t parts() const { return groups * strips * tiles; }
  // Pieces of one image: rows of partial pooled sums.
  EK_HOST_DEVICE int64_t pieces() const { return strips * tiles; }
  EK_HOST_DEVICE int64_t blocks() const { return parts() * slices; }
  EK_HOST_DEVICE bool whole_rows() const { return tiles == 1; }
};

// Rows of y in flight while a row of x is consumed, and columns that a thread keeps.
EK_HOST_DEVICE constexpr int rows_in_flight(int kernel, int stride) { return (kernel + stride - 1) / stride; }
inline constexpr int kColumns = 2;  // stride 1: of x and of y; stride 2: of x
EK_HOST_DEVICE constexpr int forward_columns(int stride) { return kColumns / stride; }

inline RawTile raw_tile(Layout layout, int vector, int rows, int columns, int channels, int64_t width,
                        bool whole_rows) {
  RawTile tile{rows, columns, channels, channels, rows * columns * channels};
  if (layout == Layout::nchw) {
    const int64_t run = whole_rows ? rows * width : columns;
    tile.pitch = int(ceil_div(run + vector - 1, vector)) * vector;
    tile.elements = tile.pitch * channels * (whole_rows ? 1 : rows);
  }
  return tile;
}

inline int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// Bytes of each array in shared memory: two stages of raw values, transformed rows, results, a table of constants and
// scratch to reduce in.
struct DepthwiseShared {
  int raw_in, raw_out, line, result, table, scratch;

  EK_HOST_DEVICE int total() const { return 2 * (raw_in + 2 * raw_out) + line + result + table + scratch; }
};

inline constexpr int kDepthwiseConstants = 8;  // per channel, backward

EK_HOST_DEVICE constexpr int to_vectors(int bytes) { return (bytes + 15) / 16 * 16; }
EK_HOST_DEVICE inline DepthwiseShared depthwise_shared(const DepthwisePlan& p, int vector) {
  const int item = 16 / vector, stride = p.shape.stride, word = int(sizeof(float));
  const int line_rows = p.backward ? p.stage_rows : p.stage_rows * stride;
  const int result_rows = p.backward ? p.stage_rows * stride : p.stage_rows;
  const int reduced = p.backward ? 0 : 3;  // backward reduces when nothing else is in use
  return {to_vectors(p.in.elements * item),
          p.backward ? to_vectors(p.out.elements * item) : 0,
          to_vectors(line_rows * p.line_columns * p.channels * word),
          to_vectors(result_rows * p.tile_columns * p.channels * word),
          p.backward ? to_vectors(kDepthwiseConstants * p.channels * word) : 0,
          reduced * p.threads() * word};
}

inline DepthwisePlan depthwise_plan(const Device& device, Layout layout, int vector, const DepthwiseShape& shape,
                                    bool backward, bool aligned) {
  const int stride = shape.stride, k = shape.kernel_size, in_flight = rows_in_flight(k, stride);
  DepthwisePlan p{};
  p.layout = layout;
  p.aligned = aligned;
  p.backward = backward;
  p.shape = shape;
  const int64_t columns = backward ? shape.width + shape.left % stride : shape.out_width;
  const int64_t rows = backward ? (shape.top + shape.height - 1) / stride - shape.top / stride + 1 : shape.out_height;
  const int own = backward ? kColumns : forward_columns(stride);

  // Channels and columns of a block. channels_last: a warp's lanes are channels. NCHW: they are columns.
  constexpr int kThreads = 256, kChannels = 32, kWidestRow = 64;
  const auto power_of_two = [](int64_t value, int limit) {
    int power = 1;
    while (power < value && power < limit) power *= 2;
    return power;
  };
  if (layout == Layout::nhwc) {
    p.channels = std::max(8, power_of_two(shape.channels, kChannels));
    p.column_threads = power_of_two(ceil_div(columns, own), kThreads / p.channels);
  } else {
    p.column_threads = power_of_two(ceil_div(columns, own), kWidestRow);
    p.channels = std::min(kThreads / p.column_threads, power_of_two(shape.channels, kChannels));
  }
  p.channels = std::max(p.channels, 32 / p.column_threads);  // whole warps
  p.tiles = ceil_div(columns, p.column_threads * own);
  p.tile_columns = round_up(int(ceil_div(columns, p.tiles)), own);
  p.tiles = ceil_div(columns, p.tile_columns);

  // Rows of a stage: enough to make a plane's run long and barriers rare, within a quarter of the shared memory.
  const int line_columns = backward ? p.tile_columns / stride + in_flight - 1 : (p.tile_columns - 1) * stride + k;
  p.line_columns = round_up(line_columns, 2);
  constexpr int kLeastRun = 128, kStageRows = 4;
  const int64_t steps = rows + in_flight - 1;
  const int64_t run = layout == Layout::nchw ? ceil_div(kLeastRun, shape.width) : 1;
  p.stage_rows = int(std::min(steps, std::max<int64_t>(run, kStageRows / stride)));
  const int wanted_bytes = std::min(device.shared_per_block, device.shared_per_multiprocessor / 4);
  const auto fill = [&] {
    const int in_rows = p.stage_rows * stride;
    p.in = raw_tile(layout, vector, in_rows, backward ? p.tile_columns : line_columns, p.channels, shape.width,
                    p.whole_rows());
    p.out = raw_tile(layout, vector, p.stage_rows, line_columns, p.channels, shape.out_width, p.whole_rows());
    // When everything is done, a kernel row of weight gradients is reduced in the same memory.
    p.shared_bytes = std::max(depthwise_shared(p, vector).total(), backward ? k * p.threads() * int(sizeof(float)) : 0);
    return p.shared_bytes;
  };
  while (fill() > wanted_bytes && p.stage_rows > 1) --p.stage_rows;
  while (fill() > device.shared_per_block && p.channels > 1 && p.threads() > 32) p.channels /= 2;
  p.slices = ceil_div(shape.channels, p.channels);

  // Strips where whole images would leave multiprocessors idle; several images to a block where there are plenty.
  constexpr int kBlocksPerMultiprocessor = 4, kPixels = 4096;
  const int64_t wanted = int64_t(device.multiprocessors) * kBlocksPerMultiprocessor;
  const int64_t blocks = std::max<int64_t>(p.slices * p.tiles * shape.images, 1);
  const int64_t least_rows = std::max(k, 4);
  p.strips = std::clamp<int64_t>(ceil_div(wanted, blocks), 1, std::max<int64_t>(rows / least_rows, 1));
  p.strip_rows = int(ceil_div(rows, p.strips));
  p.strips = ceil_div(rows, p.strip_rows);
  const int64_t most_images = std::max<int64_t>(kPixels / (rows * p.tile_columns), 1);
  p.images_per_block =
      int(std::clamp<int64_t>(blocks / wanted, 1, std::min(most_images, std::max<int64_t>(shape.images, 1))));
  p.groups = ceil_div(shape.images, p.images_per_block);
  return p;
}

}  // namespace effnet_kernels::cuda
