#include "context.h"

#include <sys/mman.h>
#include <unistd.h>
#include <cerrno>
#include <cstdint>
#include <system_error>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace hostcuda {

namespace {

// Instrumented frames are larger.
#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t kStackBytes = 256 * 1024;
#else
constexpr std::size_t kStackBytes = 64 * 1024;
#endif
constexpr std::size_t kCacheLine = 64;

Stack map_stack(std::size_t number) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  // One page that faults, and one for the tops to differ in.
  const std::size_t bytes = kStackBytes + page;
  void* mapped =
      mmap(nullptr, page + bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED || mprotect(mapped, page, PROT_NONE) != 0) {
    throw std::system_error(errno, std::generic_category(), "the stack of a CUDA thread");
  }
  const std::size_t colour = number * kCacheLine % page;
  return {static_cast<std::byte*>(mapped) + page, bytes, bytes - colour};
}

}  // namespace

Stack StackPool::take() {
  if (free_.empty()) {
    all_.push_back(map_stack(all_.size()));
    free_.reserve(all_.size());
    return all_.back();
  }
  const Stack stack = free_.back();
  free_.pop_back();
  return stack;
}

void StackPool::reclaim() {
#ifdef __SANITIZE_ADDRESS__
  // Abandoned frames never clear what they poisoned.
  for (const Stack& stack : all_) __asan_unpoison_memory_region(stack.bottom, stack.bytes);
#endif
  free_ = all_;
}

#ifdef HOSTCUDA_USES_UCONTEXT

void prepare(Context& context, const Stack& stack, void (*entry)()) {
  context.stack = stack;
  context.fake_stack = nullptr;
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack.bottom;
  context.state.uc_stack.ss_size = stack.top;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}

static void jump(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

#else

extern "C" void hostcuda_jump(void** from, void* to);

// Only what a called function has to preserve is saved. Of the x87 and SSE control words there is one for all threads.
asm(R"(
.text
.hidden hostcuda_jump
.globl hostcuda_jump
.type hostcuda_jump, @function
.align 16
hostcuda_jump:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size hostcuda_jump, . - hostcuda_jump
)");

void prepare(Context& context, const Stack& stack, void (*entry)()) {
  constexpr std::size_t saved_registers = 6;
  auto* frame = reinterpret_cast<std::uintptr_t*>(stack.bottom + stack.top / 16 * 16);
  // The return address of `entry`, where its caller would have left it: the end of every backtrace.
  *--frame = 0;
  *--frame = reinterpret_cast<std::uintptr_t>(entry);
  for (std::size_t i = 0; i < saved_registers; ++i) *--frame = 0;
  context.stack = stack;
  context.fake_stack = nullptr;
  context.stack_pointer = frame;
}

static void jump(Context& from, Context& to) { hostcuda_jump(&from.stack_pointer, to.stack_pointer); }

#endif

void switch_context(Context& from, Context& to, [[maybe_unused]] bool left) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(left ? nullptr : &from.fake_stack, to.stack.bottom, to.stack.bytes);
#endif
  jump(from, to);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void entered([[maybe_unused]] Context& from) {
#ifdef __SANITIZE_ADDRESS__
  const void* bottom = nullptr;
  std::size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  from.stack.bottom = static_cast<std::byte*>(const_cast<void*>(bottom));
  from.stack.bytes = bytes;
#endif
}

}  // namespace hostcuda
