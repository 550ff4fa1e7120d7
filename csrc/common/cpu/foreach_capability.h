// Compiles EK_KERNEL_FILE once per instruction set, in namespaces effnet_kernels::cpu::{baseline,avx2,avx512}.
//
// A .cpp defines EK_KERNEL_FILE and includes this file; `select` then picks one of the three functions at run time. With
// EK_WITH_BFLOAT16 it is compiled once more, in avx512_bf16, where kernels have instructions for bfloat16 products.
// Vector code must be defined under the target it runs on (GCC splits vectors before it inlines), so vec.h,
// activation_math.h and columns.h are compiled three times too; everything they need is included first, without a target.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common/activation.h"
#include "common/cpu/capability.h"
#include "common/half.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define EK_INLINE inline __attribute__((always_inline))
#define EK_CPU_ISA baseline
#define EK_VECTOR_BYTES 16
#include "common/cpu/foreach_capability_body.h"
#undef EK_CPU_ISA
#undef EK_VECTOR_BYTES

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EK_X86_TARGETS 1

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define EK_CPU_ISA avx2
#define EK_VECTOR_BYTES 32
#include "common/cpu/foreach_capability_body.h"
#undef EK_CPU_ISA
#undef EK_VECTOR_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#define EK_CPU_ISA avx512
#define EK_VECTOR_BYTES 64
#include "common/cpu/foreach_capability_body.h"
#undef EK_CPU_ISA
#undef EK_VECTOR_BYTES
#pragma GCC pop_options

#ifdef EK_WITH_BFLOAT16
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,prefer-vector-width=512")
#define EK_CPU_ISA avx512_bf16
#define EK_VECTOR_BYTES 64
#define EK_BFLOAT16_INSTRUCTIONS 1
#include "common/cpu/foreach_capability_body.h"
#undef EK_CPU_ISA
#undef EK_VECTOR_BYTES
#undef EK_BFLOAT16_INSTRUCTIONS
#pragma GCC pop_options

// For products of bfloat16.
#define EK_SELECT_BFLOAT16(function) \
  (::effnet_kernels::cpu::capability() == Capability::avx512_bf16 ? &avx512_bf16::function : EK_SELECT(function))
#endif

#define EK_SELECT(function) ::effnet_kernels::cpu::select(&baseline::function, &avx2::function, &avx512::function)
#else
#define EK_SELECT(function) (&baseline::function)
#define EK_SELECT_BFLOAT16(function) EK_SELECT(function)
#endif

namespace effnet_kernels::cpu {

template <class Function>
Function* select(Function* baseline, Function* avx2, Function* avx512) {
  switch (capability()) {
    case Capability::avx512_bf16:
    case Capability::avx512:
      return avx512;
    case Capability::avx2:
      return avx2;
    case Capability::baseline:
      break;
  }
  return baseline;
}

}  // namespace effnet_kernels::cpu
