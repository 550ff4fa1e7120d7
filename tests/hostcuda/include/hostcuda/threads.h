// What a thread knows of itself, and where threads meet: barriers, shuffles, votes.
#pragma once

#include <bit>
#include <cstdint>
#include <source_location>
#include <type_traits>
#include <vector_types.h>

#pragma GCC visibility push(hidden)

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace hostcuda {

enum class WarpOperation { sync, shuffle, shuffle_up, shuffle_down, shuffle_xor, ballot, any, all };

struct WarpArguments {
  WarpOperation operation;
  unsigned mask;
  // Of the value that a shuffle moves; its threads have to agree on it.
  int bytes = 0;
  // A shuffle's lane, delta or mask of lanes.
  unsigned operand = 0;
  int width = warpSize;
};

void barrier(const std::source_location& where);
std::uint64_t meet_in_warp(const WarpArguments& arguments, std::uint64_t value, const std::source_location& where);

template <typename T>
concept Shuffled = std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8);

template <WarpOperation operation, Shuffled T>
T shuffle(unsigned mask, T value, unsigned operand, int width, const std::source_location& where) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  const WarpArguments arguments{operation, mask, sizeof(T), operand, width};
  return std::bit_cast<T>(static_cast<Bits>(meet_in_warp(arguments, std::bit_cast<Bits>(value), where)));
}

inline unsigned vote(WarpOperation operation, unsigned mask, bool predicate, const std::source_location& where) {
  return static_cast<unsigned>(meet_in_warp({operation, mask}, predicate, where));
}

}  // namespace hostcuda

inline void __syncthreads(const std::source_location& where = std::source_location::current()) {
  hostcuda::barrier(where);
}

inline void __syncwarp(unsigned mask = ~0u, const std::source_location& where = std::source_location::current()) {
  hostcuda::meet_in_warp({hostcuda::WarpOperation::sync, mask}, 0, where);
}

template <hostcuda::Shuffled T>
T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize,
              const std::source_location& where = std::source_location::current()) {
  return hostcuda::shuffle<hostcuda::WarpOperation::shuffle>(mask, value, static_cast<unsigned>(lane), width, where);
}

template <hostcuda::Shuffled T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 const std::source_location& where = std::source_location::current()) {
  return hostcuda::shuffle<hostcuda::WarpOperation::shuffle_up>(mask, value, delta, width, where);
}

template <hostcuda::Shuffled T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   const std::source_location& where = std::source_location::current()) {
  return hostcuda::shuffle<hostcuda::WarpOperation::shuffle_down>(mask, value, delta, width, where);
}

template <hostcuda::Shuffled T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize,
                  const std::source_location& where = std::source_location::current()) {
  return hostcuda::shuffle<hostcuda::WarpOperation::shuffle_xor>(mask, value, static_cast<unsigned>(lanes), width,
                                                                 where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              const std::source_location& where = std::source_location::current()) {
  return hostcuda::vote(hostcuda::WarpOperation::ballot, mask, predicate != 0, where);
}

inline int __any_sync(unsigned mask, int predicate,
                      const std::source_location& where = std::source_location::current()) {
  return static_cast<int>(hostcuda::vote(hostcuda::WarpOperation::any, mask, predicate != 0, where));
}

inline int __all_sync(unsigned mask, int predicate,
                      const std::source_location& where = std::source_location::current()) {
  return static_cast<int>(hostcuda::vote(hostcuda::WarpOperation::all, mask, predicate != 0, where));
}

#pragma GCC visibility pop
