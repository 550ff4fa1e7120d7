// Which instruction set the CPU kernels run with: chosen once, at run time, from what the processor has.
#pragma once

#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace effnet_kernels::cpu {

enum class Capability { baseline, avx2, avx512, avx512_bf16 };

// What the library holds code for.
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
inline constexpr Capability kCompiled[] = {Capability::baseline, Capability::avx2, Capability::avx512,
                                           Capability::avx512_bf16};
#else
inline constexpr Capability kCompiled[] = {Capability::baseline};
#endif

inline constexpr const char* kCapabilityVariable = "EFFNET_KERNELS_CPU_CAPABILITY";

inline const char* name(Capability capability) {
  switch (capability) {
    case Capability::avx512_bf16:
      return "avx512_bf16";
    case Capability::avx512:
      return "avx512";
    case Capability::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

// What the processor (and the operating system, which must save the registers) supports.
inline Capability detected_capability() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return Capability::avx512_bf16;
  if (avx512) return Capability::avx512;
  if (avx2) return Capability::avx2;
#endif
  return Capability::baseline;
}

// The detected capability, or the lower one that the environment variable names: it can never ask for instructions
// that the processor lacks.
inline Capability chosen_capability() {
  const Capability detected = detected_capability();
  const char* requested = std::getenv(kCapabilityVariable);
  if (requested == nullptr || *requested == '\0') return detected;
  for (const Capability candidate :
       {Capability::baseline, Capability::avx2, Capability::avx512, Capability::avx512_bf16}) {
    if (std::string(requested) == name(candidate)) return candidate < detected ? candidate : detected;
  }
  throw std::runtime_error(std::string(kCapabilityVariable) +
                           ": expected one of baseline, avx2, avx512, avx512_bf16, got '" + requested + "'");
}

inline Capability capability() {
  static const Capability chosen = chosen_capability();
  return chosen;
}

}  // namespace effnet_kernels::cpu
