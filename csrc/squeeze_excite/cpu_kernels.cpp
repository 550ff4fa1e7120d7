// Runs squeeze-and-excite's two layers in parallel: over images, then over the rows of each weight gradient.
#include "common/cpu/packed_matrix.h"
#include "common/cpu/parallel.h"
#include "squeeze_excite/cpu.h"
#define EK_KERNEL_FILE "squeeze_excite/cpu_kernel.h"
#include "common/cpu/foreach_capability.h"

namespace effnet_kernels::cpu {
namespace {

void run(const ExciteParams& p, int64_t items, int64_t elements, void (*step)(const ExciteParams&, int64_t, int64_t)) {
  parallel_over(items, elements, [&](int64_t begin, int64_t end) { step(p, begin, end); });
}

}  // namespace

void excite(const ExciteParams& p) { run(p, p.images, 2 * p.channels * p.squeezed, EK_SELECT(excite_forward_step)); }

void excite_scale(const ExciteParams& p) { run(p, p.images, p.channels, EK_SELECT(excite_scale_step)); }

void excite_backward(const ExciteParams& p) {
  run(p, p.images, 2 * p.channels * p.squeezed, EK_SELECT(excite_images_step));
  run(p, p.channels, p.images * p.squeezed, EK_SELECT(excite_w2_step));
  run(p, p.squeezed, p.images * p.channels, EK_SELECT(excite_w1_step));
}

}  // namespace effnet_kernels::cpu
