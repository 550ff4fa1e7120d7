// Cuts the depthwise kernels' work into units and runs them in parallel, on the instruction set chosen at run time.
#include "common/cpu/buffer.h"
#include "common/cpu/parallel.h"
#include "depthwise_conv_bn_act/cpu.h"
#define EK_KERNEL_FILE "depthwise_conv_bn_act/cpu_kernel.h"
#include "common/cpu/foreach_capability.h"

namespace effnet_kernels::cpu {
namespace {

// Images are grouped and rows split into strips until there are about this many units: enough to share among threads,
// few enough that what a unit prepares, and the partial weight gradients, cost nothing.
constexpr int64_t kUnits = 256;

DepthwiseUnits units(const DepthwiseShape& s, Layout layout, int64_t rows) {
  constexpr int64_t kRows = 8;  // a strip of fewer would mostly recompute its neighbours' rows
  const auto divide = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t blocks = layout == Layout::nchw ? s.channels : divide(s.channels, DepthwiseUnits::kBlockChannels);
  if (s.images == 0) return {1, 0, rows, 1, blocks};
  const int64_t images_per_group = divide(s.images, std::min(s.images, divide(kUnits, blocks)));
  const int64_t groups = divide(s.images, images_per_group);
  const int64_t strips = std::clamp<int64_t>(rows / kRows, 1, divide(kUnits, groups * blocks));
  const int64_t rows_per_strip = divide(rows, strips);
  return {images_per_group, groups, rows_per_strip, divide(rows, rows_per_strip), blocks};
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
