// A runtime that executes CUDA kernel sources on the CPU, so that tests can run them where there is no GPU.
//
// A kernel's source is compiled by g++ with this folder first on the include path. A launch runs the blocks one after
// another and the threads of a block as fibers, in a seeded random order between two points where threads meet
// (barrier, shuffle, vote): what a kernel owes to a lucky order shows with some seed. Shared memory is full of NaN
// when a block begins. What a GPU refuses is refused: cudaLaunchKernelEx throws std::runtime_error, which names the
// kernel, block and thread, and the runtime stays usable. Every access of global memory through an intrinsic (__ldg,
// __stcs, ...) is checked against the buffers that were announced, and counted.
//
// Stricter than a GPU: lanes that have exited, or that a block does not have, may not be named by a warp operation's
// mask; a block whose threads wait at two different __syncthreads is refused; a launch takes no attributes.
//
// Not modelled: time; caches; bank conflicts; the memory model (stores are seen at once and in order, and blocks
// never run at the same time, so a missing fence or a race between blocks stays unseen); registers; the limit on
// static shared memory, and the borders between static shared variables; the accuracy of the approximate intrinsics,
// which are the C library's functions here; plain loads and stores of global memory through a pointer, which are
// neither checked nor counted.
//
// Kernel sources call these hooks under #ifdef EFFNET_HOSTCUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

namespace hostcuda {

#pragma GCC visibility push(hidden)

struct Region {
  std::uintptr_t begin = 0;
  std::size_t bytes = 0;

  bool holds(std::uintptr_t address, std::size_t count) const {
    return address - begin < bytes && bytes - (address - begin) >= count;
  }
};

extern Region dynamic_region, static_region;

[[noreturn]] void refuse_shared(const void* p, std::size_t bytes, const std::source_location& where);

// Where the block's dynamic shared memory begins, in place of `extern __shared__`.
inline void* dynamic_shared() { return reinterpret_cast<void*>(dynamic_region.begin); }

// Refuses [p, p + bytes) unless it lies in the block's shared memory, aligned to its size where that is 1, 2, 4, 8 or
// 16.
inline void check_shared(const void* p, std::size_t bytes,
                         const std::source_location& where = std::source_location::current()) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  const bool power = bytes <= 16 && (bytes & (bytes - 1)) == 0;
  const bool aligned = !power || (address & (bytes - 1)) == 0;
  if (!aligned || !(dynamic_region.holds(address, bytes) || static_region.holds(address, bytes))) [[unlikely]] {
    refuse_shared(p, bytes, where);
  }
}

// Kernels may read [p, p + bytes) from now on, and write it where it is writable. A range that is announced again takes
// the new name and permission; one that overlaps another in part is an error. Buffers of one name are counted together.
void announce(const char* name, const void* p, std::size_t bytes, bool writable);

// Forgets every announced buffer: to be called before memory is freed that kernels should no longer touch.
void withdraw_all();

// The name of the next launch in messages and records; without it the kernel's symbol or type.
void name_next_launch(const char* name);

#pragma GCC visibility pop

}  // namespace hostcuda
