// Runs the streaming passes in parallel, on the instruction set chosen at run time.
#include "common/cpu/passes.h"

#include "common/cpu/parallel.h"
#define EK_KERNEL_FILE "common/cpu/passes_kernel.h"
#include "common/cpu/foreach_capability.h"

namespace effnet_kernels::cpu {
namespace {

template <class Params>
void run(const Params& p, void (*columns)(const Params&, int64_t, int64_t)) {
  const Extent& e = p.extent;
  const int64_t items = e.parts() * e.slices();
  const int64_t elements = e.images * e.channels * e.pixels;
  parallel_over(items, items ? elements / items : 0, [&](int64_t begin, int64_t end) { columns(p, begin, end); });
}

}  // namespace

void statistics(const StatisticsParams& p) { run(p, EK_SELECT(statistics)); }
void normalize(const NormalizeParams& p) { run(p, EK_SELECT(normalize)); }
void forward_sums(const ForwardSumsParams& p) { run(p, EK_SELECT(forward_sums)); }
void backward_sums(const BackwardSumsParams& p) { run(p, EK_SELECT(backward_sums)); }
void input_gradient(const InputGradientParams& p) { run(p, EK_SELECT(input_gradient)); }

}  // namespace effnet_kernels::cpu
