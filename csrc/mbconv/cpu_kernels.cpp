// Runs the passes of cpu.h in parallel, on the instruction set chosen at run time.
#include "mbconv/cpu.h"

#include "common/cpu/buffer.h"
#include "common/cpu/packed_matrix.h"
#include "common/cpu/parallel.h"
#define EK_KERNEL_FILE "mbconv/cpu_kernel.h"
#include "common/cpu/foreach_capability.h"

namespace effnet_kernels::cpu {

void project_forward(const ProjectForwardParams& p) {
  const auto run = EK_SELECT(project_forward);
  const int64_t work = p.chunks.most_rows() * p.channels * p.out_channels;
  parallel_over(p.chunks.chunks(), work, [&](int64_t begin, int64_t end) { run(p, begin, end); });
}

void project_backward(const ProjectBackwardParams& p) {
  const auto run = EK_SELECT(project_backward);
  const int64_t work = p.chunks.most_rows() * p.channels * p.out_channels;
  parallel_over(p.chunks.groups(), work, [&](int64_t begin, int64_t end) { run(p, begin, end); });
}

void expand_backward(const ExpandBackwardParams& p) {
  const auto run = EK_SELECT(expand_backward);
  const int64_t work = p.chunks.most_rows() * p.channels * p.in_channels;
  parallel_over(p.chunks.groups(), work, [&](int64_t begin, int64_t end) { run(p, begin, end); });
}

}  // namespace effnet_kernels::cpu
