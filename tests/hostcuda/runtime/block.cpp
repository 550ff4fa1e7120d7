#include "block.h"

#include <cstring>
#include <stdexcept>
#include "random.h"
#include "warp.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace hostcuda {

Random orders;
Thread* current = nullptr;
unsigned threads_in_block = 0;

namespace {

Thread threads[kMostThreads];
Thread* ready[kMostThreads];
unsigned ready_count = 0, waiting_count = 0, finished_count = 0;
// At the barrier that gathers now.
Thread* first_waiting = nullptr;

const Kernel* running = nullptr;
StackPool stacks;
Context launcher;
// Of the last switch.
Context* came_from = nullptr;
bool refused = false;
std::string refusal;

Thread& choose() {
  const unsigned i = orders.below(ready_count);
  Thread& chosen = *ready[i];
  ready[i] = ready[--ready_count];
  return chosen;
}

void become(Thread& next) {
  next.state = State::running;
  current = &next;
  threadIdx = next.index;
}

void go(Context& from, Context& to, bool left) {
  came_from = &from;
  switch_context(from, to, left);
}

// Line by line: an instantiation of a template has source locations of its own.
bool same_place(const std::source_location& a, const std::source_location& b) {
  return a.line() == b.line() && (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

void set_deadlock() {
  if (set_warp_deadlock()) return;
  // Nobody is ready and nobody waits in a warp, so the barrier waits for threads that have exited.
  const Thread* exited = threads;
  while (exited->state != State::finished) ++exited;
  current = first_waiting;
  set_refusal("divergent __syncthreads at " + describe(current->where) + ": " + std::to_string(waiting_count) + " of " +
              std::to_string(threads_in_block) + " threads wait, " + std::to_string(finished_count) +
              " have exited, the first of them thread " + describe(exited->index));
}

void run_on_this_stack();

void leave_for(Thread& from, Thread& next, bool left) {
  if (next.state == State::fresh) prepare(next.context, stacks.take(), run_on_this_stack);
  become(next);
  go(from.context, next.context, left);
}

// What a stack does: runs a thread, and after it another that has not begun, until one is chosen that has.
void run_on_this_stack() {
  entered(*came_from);
  for (;;) {
    Thread& me = *current;
    me.copies.clear();
    me.committed_groups = 0;
    running->run(running->call);
    me.state = State::finished;
    ++finished_count;
    if (finished_count == threads_in_block) {
      stacks.give_back(me.context.stack);
      go(me.context, launcher, true);
    }
    if (ready_count == 0) {
      set_deadlock();
      abandon();
    }
    Thread& next = choose();
    if (next.state == State::fresh) {
      next.context.stack = me.context.stack;
      become(next);
    } else {
      stacks.give_back(me.context.stack);
      leave_for(me, next, true);
    }
  }
}

}  // namespace

Thread& thread(unsigned number) { return threads[number]; }

unsigned number_of(const Thread& thread) { return static_cast<unsigned>(&thread - threads); }

void make_ready(Thread& thread) {
  thread.state = State::ready;
  ready[ready_count++] = &thread;
}

void wait() {
  if (ready_count == 0) {
    set_deadlock();
    abandon();
  }
  Thread& me = *current;
  Thread& next = choose();
  if (&next == &me) {
    become(me);
  } else {
    leave_for(me, next, false);
  }
}

void barrier(const std::source_location& where) {
  if (current == nullptr) {
    set_refusal("__syncthreads outside a kernel");
    abandon();
  }
  if (waiting_count == 0) {
    first_waiting = current;
  } else if (!same_place(where, first_waiting->where)) {
    set_refusal("divergent __syncthreads: it waits at " + describe(where) + ", thread " +
                describe(first_waiting->index) + " at " + describe(first_waiting->where));
    abandon();
  }
  current->state = State::at_barrier;
  current->where = where;
  if (++waiting_count == threads_in_block) {
    waiting_count = 0;
    for (unsigned i = 0; i < threads_in_block; ++i) make_ready(threads[i]);
  }
  wait();
}

void begin_threads(dim3 grid, dim3 block) {
  gridDim = grid;
  blockDim = block;
  threads_in_block = block.x * block.y * block.z;
  for (unsigned i = 0; i < threads_in_block; ++i) {
    threads[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
  }
}

void run_block(const Kernel& kernel, uint3 block) {
  running = &kernel;
  blockIdx = block;
  waiting_count = finished_count = 0;
  forget_warp_operations();
  for (unsigned i = 0; i < threads_in_block; ++i) {
    threads[i].state = State::fresh;
    ready[i] = &threads[i];
  }
  ready_count = threads_in_block;
  Thread& first = choose();
  prepare(first.context, stacks.take(), run_on_this_stack);
  become(first);
  go(launcher, first.context, false);
  if (refused) {
    stacks.reclaim();
    throw std::runtime_error(refusal);
  }
}

void end_threads() {
  current = nullptr;
  running = nullptr;
  refused = false;
}

void set_refusal(const std::string& reason) {
  if (current == nullptr) {
    refusal = reason;
  } else {
    refusal = running->name + ", block " + describe(blockIdx) + ", thread " + describe(current->index) + ": " + reason;
  }
}

void abandon() {
  if (current == nullptr) throw std::runtime_error(refusal);
  refused = true;
  go(current->context, launcher, true);
  __builtin_unreachable();
}

std::string describe(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

std::string describe(const std::source_location& where) {
  const std::string file = where.file_name();
  return file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(where.line());
}

std::string describe_state(const Thread& thread) {
  switch (thread.state) {
    case State::at_barrier:
      return "waits in __syncthreads at " + describe(thread.where);
    case State::in_warp_operation:
      return "waits in another warp operation at " + describe(thread.where);
    case State::finished:
      return "has exited";
    default:
      return "runs";
  }
}

}  // namespace hostcuda
