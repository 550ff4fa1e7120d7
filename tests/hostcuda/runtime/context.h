// Stacks to run on, and the switch from one to another.
#pragma once

#include <cstddef>
#include <vector>

#if !defined(__x86_64__) || defined(HOSTCUDA_UCONTEXT)
#define HOSTCUDA_USES_UCONTEXT
#include <ucontext.h>
#endif

namespace hostcuda {

struct Stack {
  std::byte* bottom = nullptr;
  std::size_t bytes = 0;
  // Kept apart from the size, so that the stacks' tops do not all fall into one set of the caches.
  std::size_t top = 0;
};

// Where an execution stands that is not running.
struct Context {
#ifdef HOSTCUDA_USES_UCONTEXT
  ucontext_t state;
#else
  void* stack_pointer = nullptr;
#endif
  Stack stack;
  // Of AddressSanitizer.
  void* fake_stack = nullptr;
};

// Lets `context` begin with `entry`, which must not return and first of all calls entered().
void prepare(Context& context, const Stack& stack, void (*entry)());

// Stops here, as `from`, and goes on where `to` stopped. What is `left` does not come back.
void switch_context(Context& from, Context& to, bool left);

// `from` is the context that was left for this one; a thread's own stack becomes known by it.
void entered(Context& from);

// Stacks are kept: a launch after the first finds them mapped. Below each lies a page that faults.
class StackPool {
 public:
  Stack take();
  void give_back(const Stack& stack) { free_.push_back(stack); }
  // All of them are free: whatever was running on them has been abandoned.
  void reclaim();

 private:
  std::vector<Stack> all_, free_;
};

}  // namespace hostcuda
