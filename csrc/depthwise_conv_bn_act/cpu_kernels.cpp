// Cuts the depthwise kernels' work into units and runs them in parallel, on the instruction set chosen at run time.
#include "common/cpu/buffer.h"
#include "common/cpu/parallel.h"
#include "depthwise_conv_bn_act/cpu.h"
#define EK_KERNEL_FILE "depthwise_conv_bn_act/cpu_kernel.h"
#include "common/cpu/foreach_capability.h"

namespace effnet_kernels::cpu {
namespace {

constexpr int64_t kUnits = 64;  // enough to share among threads; beyond it images are grouped, below it rows split

DepthwiseUnits units(const DepthwiseShape& s, Layout layout, int64_t rows, int64_t groups) {
  constexpr int64_t kRows = 8;  // fewer would mostly recompute their neighbours' rows
  const int64_t blocks = layout == Layout::nchw ? s.channels
                                                : (s.channels + DepthwiseUnits::kBlockChannels - 1) /
                                                      DepthwiseUnits::kBlockChannels;
  const int64_t images_per_group = groups ? (s.images + groups - 1) / groups : 1;
  groups = (s.images + images_per_group - 1) / images_per_group;
  const int64_t wanted = groups ? (kUnits + groups * blocks - 1) / (groups * blocks) : 1;
  const int64_t strips = std::clamp<int64_t>(rows / kRows, 1, wanted);
  const int64_t rows_per_strip = (rows + strips - 1) / strips;
  return {images_per_group, groups, rows_per_strip, (rows + rows_per_strip - 1) / rows_per_strip, blocks};
}

}  // namespace

// Every image is a group of its own: the sums of a part are sums of an image.
DepthwiseUnits forward_units(const DepthwiseShape& s, Layout layout) {
  return units(s, layout, s.out_height, s.images);
}

// Images share partial weight gradients, so that their number does not grow with the batch.
DepthwiseUnits backward_units(const DepthwiseShape& s, Layout layout) {
  return units(s, layout, s.height, std::min(s.images, kUnits));
}

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
