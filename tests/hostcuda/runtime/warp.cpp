#include "warp.h"

#include <bit>
#include <string>
#include "block.h"

namespace hostcuda {

namespace {

constexpr unsigned kWarps = kMostThreads / warpSize;

// Threads of one warp that have come to one operation; it is done when all that the mask names are there.
struct Meeting {
  WarpOperation operation;
  int bytes;
  unsigned mask, arrived;
  std::source_location where;
};

struct Warp {
  // Masks that exclude each other may wait side by side.
  Meeting meetings[warpSize];
  unsigned count = 0;
  std::uint64_t values[warpSize], results[warpSize];
  unsigned sources[warpSize];
};

Warp warps[kWarps];

const char* name_of(WarpOperation operation) {
  constexpr const char* names[] = {"__syncwarp",      "__shfl_sync",   "__shfl_up_sync", "__shfl_down_sync",
                                   "__shfl_xor_sync", "__ballot_sync", "__any_sync",     "__all_sync"};
  return names[static_cast<int>(operation)];
}

std::string hexadecimal(unsigned mask) {
  std::string digits = "0x";
  for (int shift = 28; shift >= 0; shift -= 4) digits += "0123456789abcdef"[mask >> shift & 15];
  return digits;
}

std::string describe(WarpOperation operation, unsigned mask, const std::source_location& where) {
  return std::string(name_of(operation)) + " with mask " + hexadecimal(mask) + " at " + hostcuda::describe(where);
}

bool is_shuffle(WarpOperation operation) {
  return operation >= WarpOperation::shuffle && operation <= WarpOperation::shuffle_xor;
}

// The lane that a shuffle reads: its own where the other lies outside the group of `width` lanes.
unsigned source_of(const WarpArguments& arguments, unsigned lane) {
  const unsigned inside = static_cast<unsigned>(arguments.width) - 1, first = lane & ~inside, last = lane | inside;
  switch (arguments.operation) {
    case WarpOperation::shuffle:
      return first | (arguments.operand & inside);
    case WarpOperation::shuffle_up:
      return arguments.operand > lane - first ? lane : lane - arguments.operand;
    case WarpOperation::shuffle_down:
      return arguments.operand > last - lane ? lane : lane + arguments.operand;
    case WarpOperation::shuffle_xor: {
      const unsigned other = lane ^ (arguments.operand & (warpSize - 1));
      return other > last ? lane : other;
    }
    default:
      return lane;
  }
}

void set_inactive_lane(const Meeting& meeting, unsigned lane, unsigned source) {
  set_refusal(describe(meeting.operation, meeting.mask, meeting.where) + ": lane " + std::to_string(lane) +
              " reads from lane " + std::to_string(source) + ", which takes no part");
}

void shuffle(Warp& warp, const Meeting& meeting) {
  for (unsigned rest = meeting.mask; rest != 0; rest &= rest - 1) {
    const unsigned lane = static_cast<unsigned>(std::countr_zero(rest)), source = warp.sources[lane];
    if ((meeting.mask >> source & 1) == 0) {
      set_inactive_lane(meeting, lane, source);
      abandon();
    }
    warp.results[lane] = warp.values[source];
  }
}

void vote(Warp& warp, const Meeting& meeting) {
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < warpSize; ++lane) {
    if (meeting.mask >> lane & 1) ballot |= static_cast<unsigned>(warp.values[lane]) << lane;
  }
  std::uint64_t result = ballot;
  if (meeting.operation == WarpOperation::any) result = ballot != 0;
  if (meeting.operation == WarpOperation::all) result = ballot == meeting.mask;
  for (unsigned lane = 0; lane < warpSize; ++lane) {
    if (meeting.mask >> lane & 1) warp.results[lane] = result;
  }
}

Meeting& meeting_for(Warp& warp, const WarpArguments& arguments, const std::source_location& where) {
  for (unsigned i = 0; i < warp.count; ++i) {
    Meeting& meeting = warp.meetings[i];
    if (meeting.operation == arguments.operation && meeting.mask == arguments.mask &&
        meeting.bytes == arguments.bytes) {
      return meeting;
    }
  }
  Meeting& meeting = warp.meetings[warp.count++];
  meeting = {arguments.operation, arguments.bytes, arguments.mask, 0, where};
  return meeting;
}

void check(const WarpArguments& arguments, unsigned lane, const std::source_location& where) {
  if (current == nullptr) {
    set_refusal(std::string(name_of(arguments.operation)) + " outside a kernel");
  } else if ((arguments.mask >> lane & 1) == 0) {
    set_refusal(describe(arguments.operation, arguments.mask, where) + ": the mask does not name lane " +
                std::to_string(lane) + ", which calls it");
  } else if (arguments.width > warpSize || !std::has_single_bit(static_cast<unsigned>(arguments.width))) {
    set_refusal(describe(arguments.operation, arguments.mask, where) + ": width " + std::to_string(arguments.width) +
                " is no power of two up to 32");
  } else {
    return;
  }
  abandon();
}

}  // namespace

std::uint64_t meet_in_warp(const WarpArguments& arguments, std::uint64_t value, const std::source_location& where) {
  const unsigned number = current == nullptr ? 0 : number_of(*current), lane = number % warpSize;
  check(arguments, lane, where);
  Warp& warp = warps[number / warpSize];
  Meeting& meeting = meeting_for(warp, arguments, where);
  warp.values[lane] = value;
  warp.sources[lane] = source_of(arguments, lane);
  meeting.arrived |= 1u << lane;
  current->state = State::in_warp_operation;
  current->where = where;
  if (meeting.arrived == meeting.mask) {
    is_shuffle(meeting.operation) ? shuffle(warp, meeting) : vote(warp, meeting);
    for (unsigned rest = meeting.mask; rest != 0; rest &= rest - 1) {
      make_ready(thread(number - lane + static_cast<unsigned>(std::countr_zero(rest))));
    }
    meeting = warp.meetings[--warp.count];
  }
  wait();
  return warp.results[lane];
}

void forget_warp_operations() {
  for (Warp& warp : warps) warp.count = 0;
}

bool set_warp_deadlock() {
  for (unsigned w = 0; w < kWarps; ++w) {
    if (warps[w].count == 0) continue;
    const Meeting& meeting = warps[w].meetings[0];
    const unsigned missing = static_cast<unsigned>(std::countr_zero(meeting.mask & ~meeting.arrived));
    const unsigned number = w * warpSize + missing;
    current = &thread(w * warpSize + static_cast<unsigned>(std::countr_zero(meeting.arrived)));
    set_refusal(describe(meeting.operation, meeting.mask, meeting.where) + " waits for lane " +
                std::to_string(missing) + " of warp " + std::to_string(w) + ", which " +
                (number < threads_in_block ? describe_state(thread(number)) : std::string("the block does not have")));
    return true;
  }
  return false;
}

}  // namespace hostcuda
