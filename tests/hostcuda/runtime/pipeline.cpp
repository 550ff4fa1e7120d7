#include <cuda_pipeline_primitives.h>

#include <cstring>
#include <string>
#include "block.h"
#include "device.h"

namespace hostcuda {

namespace {

// Refuses what the copy's own checks of its two ends do not see.
void check_copy(const void* source, std::size_t bytes, std::size_t zero_filled, const std::source_location& where) {
  const std::string_view name = "__pipeline_memcpy_async at ";
  if (current == nullptr) {
    set_refusal("__pipeline_memcpy_async outside a kernel");
  } else if (bytes != 4 && bytes != 8 && bytes != 16) {
    set_refusal(std::string(name) + describe(where) + ": it copies 4, 8 or 16 bytes, not " + std::to_string(bytes));
  } else if (zero_filled > bytes) {
    set_refusal(std::string(name) + describe(where) + ": of " + std::to_string(bytes) + " bytes it cannot zero " +
                std::to_string(zero_filled));
  } else if (reinterpret_cast<std::uintptr_t>(source) % bytes != 0) {
    set_refusal(std::string(name) + describe(where) + ": the address it reads is misaligned, " +
                std::to_string(reinterpret_cast<std::uintptr_t>(source) % bytes) + " past a multiple of " +
                std::to_string(bytes));
  } else {
    return;
  }
  abandon();
}

void carry_out(const Copy& copy) {
  std::memcpy(copy.target, copy.source, copy.bytes);
  std::memset(static_cast<std::byte*>(copy.target) + copy.bytes, 0, copy.zero_filled);
}

}  // namespace

}  // namespace hostcuda

void __pipeline_memcpy_async(void* shared, const void* global, std::size_t bytes, std::size_t zero_filled,
                             const std::source_location& where) {
  using namespace hostcuda;
  check_copy(global, bytes, zero_filled, where);
  check_shared(shared, bytes, where);
  // A copy that only fills with zeros reads nothing, and its source may be anywhere.
  if (bytes > zero_filled) check_read(global, bytes - zero_filled, bytes, where);
  const Copy copy{shared, global, static_cast<unsigned>(bytes - zero_filled), static_cast<unsigned>(zero_filled),
                  current->committed_groups};
  // Before sm_80 the primitives are plain loads and stores.
  if (device.compute_capability_major < 8) {
    carry_out(copy);
  } else {
    current->copies.push_back(copy);
  }
}

void __pipeline_commit() { ++hostcuda::current->committed_groups; }

void __pipeline_wait_prior(std::size_t groups) {
  hostcuda::Thread& me = *hostcuda::current;
  auto copy = me.copies.begin();
  for (; copy != me.copies.end() && copy->group + groups < me.committed_groups; ++copy) {
    hostcuda::carry_out(*copy);
  }
  me.copies.erase(me.copies.begin(), copy);
}
