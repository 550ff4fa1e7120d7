// One instruction set's turn of foreach_capability.h.
namespace effnet_kernels::cpu::EK_CPU_ISA {
#include "common/cpu/vec.h"
#include "common/activation_math.h"
#include "common/cpu/columns.h"
#include EK_KERNEL_FILE
}  // namespace effnet_kernels::cpu::EK_CPU_ISA
