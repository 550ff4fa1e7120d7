// Cuts the depthwise kernels' work into units and runs them in parallel, on the instruction set chosen at run time.
#include "common/cpu/buffer.h"
#include "common/cpu/parallel.h"
#include "depthwise_conv_bn_act/cpu.h"
#define EK_KERNEL_FILE "depthwise_conv_bn_act/cpu_kernel.h"
#include "common/cpu/foreach_capability.h"

namespace effnet_kernels::cpu {
namespace {

int64_t divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Images are grouped and rows split into strips until there are about `target` units: enough to share among threads, few
// enough that what a unit prepares, and the partial weight gradients, cost nothing.
DepthwiseUnits units(const DepthwiseShape& s, int64_t rows, int64_t blocks, int64_t block_channels, int64_t target) {
  constexpr int64_t kRows = 8;  // a strip of fewer would mostly recompute its neighbours' rows
  if (s.images == 0) return {1, 0, rows, 1, blocks, block_channels};
  const int64_t images_per_group = divide(s.images, std::min(s.images, divide(target, blocks)));
  const int64_t groups = divide(s.images, images_per_group);
  const int64_t strips = std::clamp<int64_t>(rows / kRows, 1, divide(target, groups * blocks));
  const int64_t rows_per_strip = divide(rows, strips);
  return {images_per_group, groups, rows_per_strip, divide(rows, rows_per_strip), blocks, block_channels};
}

// channels_last: blocks as wide as the ring of K rows stays in the second-level cache, since neighbouring channels are
// neighbours in memory, and narrower where there are few images.
int64_t block_channels_of(const DepthwiseShape& s) {
  constexpr int64_t kRingElements = 65536, kFewUnits = 16;
  const int64_t row_elements = s.kernel_size * (s.width + s.kernel_size);
  const int64_t in_cache = std::clamp<int64_t>(kRingElements / row_elements, 32, DepthwiseUnits::kMaxBlockChannels);
  const int64_t for_threads = divide(kFewUnits, std::max<int64_t>(1, s.images));
  const int64_t blocks =
      std::min(std::max(divide(s.channels, in_cache), for_threads), std::max<int64_t>(1, s.channels / 32));
  return padded_channels(divide(s.channels, blocks));
}

DepthwiseUnits units(const DepthwiseShape& s, Layout layout, int64_t rows) {
  if (layout == Layout::nchw) return units(s, rows, s.channels, 1, 256);
  const int64_t block_channels = block_channels_of(s);
  return units(s, rows, divide(s.channels, block_channels), block_channels, 32);
}

}  // namespace

DepthwiseUnits forward_units(const DepthwiseShape& s, Layout layout) { return units(s, layout, s.out_height); }
DepthwiseUnits backward_units(const DepthwiseShape& s, Layout layout) { return units(s, layout, s.height); }

void depthwise_forward(const DepthwiseForwardParams& p) {
  const auto run = EK_SELECT(depthwise_forward_units);
  const int64_t elements = p.shape.images * p.shape.channels * p.shape.out_pixels() * p.shape.taps();
  parallel_over(p.units.count(), p.units.count() ? elements / p.units.count() : 0,
                [&](int64_t begin, int64_t end) { run(p, begin, end); });
}

void depthwise_backward(const DepthwiseBackwardParams& p) {
  const auto run = EK_SELECT(depthwise_backward_units);
  const int64_t elements = p.shape.images * p.shape.channels * p.shape.out_pixels() * p.shape.taps() * 2;
  parallel_over(p.units.count(), p.units.count() ? elements / p.units.count() : 0,
                [&](int64_t begin, int64_t end) { run(p, begin, end); });
}

}  // namespace effnet_kernels::cpu
