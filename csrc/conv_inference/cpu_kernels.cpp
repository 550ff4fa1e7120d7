// Runs conv_inference over images and rows or chunks of pixels, on the instruction set chosen at run time.
#include "common/cpu/buffer.h"
#include "common/cpu/packed_matrix.h"
#include "common/cpu/parallel.h"
#include "conv_inference/cpu.h"
#define EK_WITH_BFLOAT16
#define EK_KERNEL_FILE "conv_inference/cpu_kernel.h"
#include "common/cpu/foreach_capability.h"

namespace effnet_kernels::cpu {

void conv_inference(const ConvInferenceParams& p) {
  const auto run = p.bfloat16_products ? EK_SELECT_BFLOAT16(conv_inference_units) : EK_SELECT(conv_inference_units);
  parallel_over(p.units(), p.unit_elements(), [&](int64_t begin, int64_t end) { run(p, begin, end); });
}

}  // namespace effnet_kernels::cpu
