// Shares the channels of channel_steps.h among threads, on the instruction set chosen at run time.
#include "common/cpu/channel_steps.h"

#include "common/cpu/parallel.h"
#define EK_KERNEL_FILE "common/cpu/channel_steps_kernel.h"
#include "common/cpu/foreach_capability.h"

namespace effnet_kernels::cpu {
namespace {

// Of `row` padded channels, where the `rows` values read of each are worth it.
template <class Params>
void run(const Params& p, int64_t rows, void (*step)(const Params&, int64_t, int64_t)) {
  parallel_over(p.row / kChannelPadding, rows * kChannelPadding,
                [&](int64_t begin, int64_t end) { step(p, begin * kChannelPadding, end * kChannelPadding); });
}

}  // namespace

void sum_rows(const SumRowsParams& p) { run(p, p.groups * p.size, EK_SELECT(sum_rows_step)); }
void merge_statistics(const MergeStatisticsParams& p) { run(p, 2 * p.parts, EK_SELECT(merge_statistics_step)); }
void batch_norm_gradient(const BatchNormGradientParams& p) {
  run(p, 4 * p.images, EK_SELECT(batch_norm_gradient_step));
}

}  // namespace effnet_kernels::cpu
