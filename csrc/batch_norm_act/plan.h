// How a streaming pass over an activation tensor is cut into blocks. Shared by the launcher and by Python; no CUDA in it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/dispatch.h"

namespace effnet_kernels::cuda {

// A block takes one slice of the channels and one chunk of one image's pixels. Its threads stand in `down` rows of
// `across`. channels_last: a row is one pixel, `across` vectors of neighbouring channels. NCHW: a row is one plane, of
// which `across` threads take neighbouring vectors. Each (image, chunk) is a part, with its own row of partial results.
struct StreamPlan {
  Layout layout;
  bool aligned;  // 16-byte accesses are possible
  int64_t images, channels, pixels;
  int across, down;
  int64_t slices, chunks, chunk_pixels;

  EK_HOST_DEVICE int threads() const { return across * down; }
  EK_HOST_DEVICE int64_t parts() const { return images * chunks; }
  EK_HOST_DEVICE int64_t blocks() const { return parts() * slices; }
  // Channels of one block.
  EK_HOST_DEVICE int width(int vector) const { return layout == Layout::nhwc ? across * vector : down; }
};

EK_HOST_DEVICE inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// `vector`: elements in 16 bytes.
inline StreamPlan stream_plan(int multiprocessors, Layout layout, int vector, int64_t images, int64_t channels,
                              int64_t pixels, bool aligned) {
  constexpr int kThreads = 256, kLeastSteps = 8, kBlocksPerMultiprocessor = 8;
  StreamPlan plan{layout, aligned, images, channels, pixels, 1, 1, 1, 1, pixels};
  int64_t steps;  // of a thread over a whole image's part of the slice
  if (layout == Layout::nhwc) {
    const int64_t vectors = ceil_div(channels, vector);
    const auto idle = [&](int across) { return ceil_div(vectors, across) * across - vectors; };
    // Wide slices read long runs of memory; narrower ones where those would leave over an eighth of the threads idle.
    for (plan.across = 32; plan.across > 1 && idle(plan.across) * 8 > vectors;) plan.across /= 2;
    plan.down = kThreads / plan.across;
    plan.slices = ceil_div(vectors, plan.across);
    steps = ceil_div(pixels, plan.down);
  } else {
    const int64_t vectors = ceil_div(pixels + vector - 1, vector);
    for (plan.across = 1; plan.across < kThreads && plan.across * 4 <= vectors;) plan.across *= 2;
    plan.down = kThreads / plan.across;
    plan.slices = ceil_div(channels, plan.down);
    steps = ceil_div(vectors, plan.across);
  }
  // More than one chunk only where an image's blocks would leave multiprocessors idle.
  const int64_t blocks = std::max<int64_t>(images * plan.slices, 1);
  const int64_t wanted = ceil_div(int64_t(multiprocessors) * kBlocksPerMultiprocessor, blocks);
  plan.chunks = std::max<int64_t>(1, std::min(wanted, steps / kLeastSteps));
  const int64_t grain = layout == Layout::nhwc ? plan.down : vector;
  plan.chunk_pixels = std::max<int64_t>(ceil_div(ceil_div(pixels, plan.chunks), grain) * grain, grain);
  plan.chunks = std::max<int64_t>(1, ceil_div(pixels, plan.chunk_pixels));
  return plan;
}

}  // namespace effnet_kernels::cuda
