// Runs the mean over images and threads.
#include "common/cpu/packed_matrix.h"
#include "common/cpu/parallel.h"
#include "network_inference/cpu.h"
#define EK_KERNEL_FILE "network_inference/cpu_kernel.h"
#include "common/cpu/foreach_capability.h"

namespace effnet_kernels::cpu {

void pool_inference(const PoolInferenceParams& p) {
  const auto kernel = EK_SELECT(pool_images);
  parallel_over(p.images, p.channels * p.pixels, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

}  // namespace effnet_kernels::cpu
