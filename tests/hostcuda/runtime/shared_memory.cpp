#include "shared_memory.h"

#include <algorithm>
#include <cstring>
#include <vector>
#include "block.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

// From shared_memory.ld.
extern "C" [[gnu::visibility("hidden")]] std::byte hostcuda_static_shared_begin[], hostcuda_static_shared_end[];

namespace hostcuda {

Region dynamic_region, static_region;

namespace {

constexpr std::size_t kGuardBytes = 1024;
// What CUDA promises of dynamic shared memory's alignment, and no more.
constexpr std::size_t kAlignment = 16;
constexpr auto kFill = std::byte{0xff};

std::vector<std::byte> arena;

std::byte* dynamic_begin() { return reinterpret_cast<std::byte*>(dynamic_region.begin); }
std::byte* dynamic_end() { return dynamic_begin() + dynamic_region.bytes; }

#ifdef __SANITIZE_ADDRESS__
// Between the variables lie red zones, which AddressSanitizer's own memset would refuse.
[[gnu::no_sanitize_address, gnu::optimize("no-tree-loop-distribute-patterns")]]
void fill_static() {
  for (std::size_t i = 0; i < static_region.bytes; ++i) hostcuda_static_shared_begin[i] = kFill;
}
#else
void fill_static() { std::memset(hostcuda_static_shared_begin, static_cast<int>(kFill), static_region.bytes); }
#endif

std::string describe_damage(const std::byte* guard, const std::string& side) {
  // Filled from end to end where every byte is as the next.
  if (guard[0] == kFill && std::memcmp(guard, guard + 1, kGuardBytes - 1) == 0) return {};
  const std::byte* damaged = std::find_if(guard, guard + kGuardBytes, [](std::byte b) { return b != kFill; });
  const auto distance = damaged < dynamic_begin() ? dynamic_begin() - damaged : damaged - dynamic_end();
  return "shared memory was written out of bounds, " + std::to_string(distance) + " bytes " + side + " its " +
         std::to_string(dynamic_region.bytes) + " dynamic bytes";
}

}  // namespace

void begin_shared_memory(std::size_t dynamic_bytes) {
  arena.resize(std::max(arena.size(), 2 * kGuardBytes + 4 * kAlignment + dynamic_bytes));
  const auto first = reinterpret_cast<std::uintptr_t>(arena.data()) + kGuardBytes;
  // An odd multiple: whoever relies on more finds out.
  dynamic_region = {(first + 2 * kAlignment - 1) / (2 * kAlignment) * (2 * kAlignment) + kAlignment, dynamic_bytes};
  static_region = {reinterpret_cast<std::uintptr_t>(hostcuda_static_shared_begin),
                   static_cast<std::size_t>(hostcuda_static_shared_end - hostcuda_static_shared_begin)};
  std::fill_n(dynamic_begin() - kGuardBytes, kGuardBytes, kFill);
  std::fill_n(dynamic_end(), kGuardBytes, kFill);
#ifdef __SANITIZE_ADDRESS__
  __asan_poison_memory_region(dynamic_begin() - kGuardBytes, kGuardBytes);
  __asan_poison_memory_region(dynamic_end(), kGuardBytes);
#endif
}

void fill_shared_memory() {
  std::memset(dynamic_begin(), static_cast<int>(kFill), dynamic_region.bytes);
  fill_static();
}

std::string describe_damage() {
#ifdef __SANITIZE_ADDRESS__
  return {};
#else
  const std::string before = describe_damage(dynamic_begin() - kGuardBytes, "before");
  return before.empty() ? describe_damage(dynamic_end(), "past") : before;
#endif
}

void end_shared_memory() {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(arena.data(), arena.size());
#endif
  dynamic_region = static_region = {};
}

static std::string describe_access(std::uintptr_t address, std::size_t bytes, const std::source_location& where) {
  const std::string access = "shared memory access of " + std::to_string(bytes) + " bytes at " + describe(where);
  if (dynamic_region.holds(address, bytes) || static_region.holds(address, bytes)) {
    return access + " is misaligned: its address is " + std::to_string(address % bytes) + " past a multiple of " +
           std::to_string(bytes);
  }
  return access + " is out of bounds: it begins at offset " +
         std::to_string(static_cast<std::ptrdiff_t>(address - dynamic_region.begin)) + " of the block's " +
         std::to_string(dynamic_region.bytes) + " dynamic bytes";
}

void refuse_shared(const void* p, std::size_t bytes, const std::source_location& where) {
  set_refusal(describe_access(reinterpret_cast<std::uintptr_t>(p), bytes, where));
  abandon();
}

}  // namespace hostcuda
