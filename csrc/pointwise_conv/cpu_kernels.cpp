// Runs the 1×1 convolutions in parallel, on the instruction set chosen at run time.
#include "common/cpu/buffer.h"
#include "common/cpu/packed_matrix.h"
#include "common/cpu/parallel.h"
#include "common/cpu/passes.h"
#include "pointwise_conv/cpu.h"
#define EK_KERNEL_FILE "pointwise_conv/cpu_kernel.h"
#include "common/cpu/foreach_capability.h"

namespace effnet_kernels::cpu {

void pointwise_forward(const PointwiseForwardParams& p) {
  const auto run = EK_SELECT(pointwise_forward);
  const int64_t work = p.chunks.most_rows() * p.in_channels * p.out_channels;
  parallel_over(p.chunks.chunks(), work, [&](int64_t begin, int64_t end) { run(p, begin, end); });
}

void outer_product(const OuterProductParams& p) {
  const auto run = EK_SELECT(outer_product);
  const int64_t work = p.rows * std::min(p.a_columns, p.b_columns) * p.kBlock / kChannelPadding;
  parallel_over(p.blocks(), work, [&](int64_t begin, int64_t end) { run(p, begin, end); });
}

void pointwise_backward(const PointwiseBackwardParams& p) {
  const auto run = EK_SELECT(pointwise_backward);
  const int64_t work = p.chunks.most_rows() * p.in_channels * p.out_channels;
  parallel_over(p.chunks.groups(), work, [&](int64_t begin, int64_t end) { run(p, begin, end); });
}

}  // namespace effnet_kernels::cpu
