// The threads of the block that runs: their states, which of them runs next, and how a launch ends early.
#pragma once

#include <cstddef>
#include <source_location>
#include <string>
#include <vector>
#include <cuda_runtime.h>
#include "context.h"

namespace hostcuda {

inline constexpr unsigned kMostThreads = 1024;

// A copy that has been issued and is not done.
struct Copy {
  void* target;
  const void* source;
  unsigned bytes, zero_filled;
  std::size_t group;
};

enum class State { fresh, running, ready, at_barrier, in_warp_operation, finished };

struct Thread {
  Context context;
  uint3 index;
  State state = State::finished;
  // Where it waits.
  std::source_location where;
  std::vector<Copy> copies;
  std::size_t committed_groups = 0;
};

// Null between launches.
extern Thread* current;
extern unsigned threads_in_block;

Thread& thread(unsigned number);
unsigned number_of(const Thread& thread);
void make_ready(Thread& thread);
// Runs others until the current thread has been made ready and is chosen.
void wait();

struct Kernel {
  std::string name;
  void (*run)(void*);
  void* call;
};

// Throws what a thread was refused for; its block is abandoned then.
void run_block(const Kernel& kernel, uint3 block);
void begin_threads(dim3 grid, dim3 block);
void end_threads();

// Two steps, so that nothing is alive on the stack that is left: first the reason, then the jump to run_block().
void set_refusal(const std::string& reason);
[[noreturn]] void abandon();

std::string describe(const uint3& index);
std::string describe(const std::source_location& where);
// What a thread that does not go on is doing.
std::string describe_state(const Thread& thread);

}  // namespace hostcuda
