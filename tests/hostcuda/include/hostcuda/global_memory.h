// Loads and stores of global memory: checked against the announced buffers, and counted by buffer.
#pragma once

#include <concepts>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <vector_types.h>
#include "../hostcuda.h"

#pragma GCC visibility push(hidden)

namespace hostcuda {

// What a launch moved between a buffer and its threads.
struct Traffic {
  std::uint64_t bytes = 0;
  // Of 32 bytes, each counted once.
  std::uint64_t sectors = 0;
};

struct Buffer {
  static constexpr int sector_bits = 5;

  Region region;
  bool writable = false;
  // A sector has been touched in this launch where its entry is the launch's own number, so nothing has to be cleared.
  std::uint8_t epoch = 0;
  std::uint8_t* sectors_read = nullptr;
  std::uint8_t* sectors_written = nullptr;
  Traffic read, written;
  std::uint64_t wide_accesses = 0, narrow_accesses = 0;

  void count(std::uintptr_t address, std::size_t moved, Traffic& traffic, std::uint8_t* sectors) {
    traffic.bytes += moved;
    ++(moved == 16 ? wide_accesses : narrow_accesses);
    std::uint8_t& sector = sectors[(address >> sector_bits) - (region.begin >> sector_bits)];
    traffic.sectors += sector != epoch;
    sector = epoch;
  }
};

// Neighbouring accesses mostly fall into one buffer; those that do not are looked up.
extern Buffer *last_read, *last_written;
Buffer* find_readable(const void* p, std::size_t bytes, std::size_t alignment, const std::source_location& where);
Buffer* find_writable(const void* p, std::size_t bytes, std::size_t alignment, const std::source_location& where);

// `bytes` of them at most 16, and within one sector because they are aligned.
inline void check_read(const void* p, std::size_t bytes, std::size_t alignment, const std::source_location& where) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  if (!last_read->region.holds(address, bytes) || (address & (alignment - 1)) != 0) [[unlikely]] {
    last_read = find_readable(p, bytes, alignment, where);
  }
  last_read->count(address, bytes, last_read->read, last_read->sectors_read);
}

inline void check_write(const void* p, std::size_t bytes, const std::source_location& where) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  if (!last_written->region.holds(address, bytes) || (address & (bytes - 1)) != 0) [[unlikely]] {
    last_written = find_writable(p, bytes, bytes, where);
  }
  last_written->count(address, bytes, last_written->written, last_written->sectors_written);
}

template <typename T, typename... Choices>
concept OneOf = (std::same_as<T, Choices> || ...);

// What CUDA overloads its loads and stores for, as far as kernels here use it.
template <typename T>
concept Accessed =
    OneOf<T, char, signed char, unsigned char, short, unsigned short, int, unsigned, long, unsigned long, long long,
          unsigned long long, float, double, int2, int4, uint2, uint4, float2, float4, double2>;

template <Accessed T>
T load(const T* p, const std::source_location& where) {
  check_read(p, sizeof(T), sizeof(T), where);
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

template <Accessed T>
void store(T* p, const T& value, const std::source_location& where) {
  check_write(p, sizeof(T), where);
  std::memcpy(p, &value, sizeof(T));
}

}  // namespace hostcuda

template <hostcuda::Accessed T>
T __ldg(const T* p, const std::source_location& where = std::source_location::current()) {
  return hostcuda::load(p, where);
}

template <hostcuda::Accessed T>
T __ldca(const T* p, const std::source_location& where = std::source_location::current()) {
  return hostcuda::load(p, where);
}

template <hostcuda::Accessed T>
T __ldcg(const T* p, const std::source_location& where = std::source_location::current()) {
  return hostcuda::load(p, where);
}

template <hostcuda::Accessed T>
T __ldcs(const T* p, const std::source_location& where = std::source_location::current()) {
  return hostcuda::load(p, where);
}

template <hostcuda::Accessed T>
void __stwb(T* p, std::type_identity_t<T> value, const std::source_location& where = std::source_location::current()) {
  hostcuda::store(p, value, where);
}

template <hostcuda::Accessed T>
void __stcg(T* p, std::type_identity_t<T> value, const std::source_location& where = std::source_location::current()) {
  hostcuda::store(p, value, where);
}

template <hostcuda::Accessed T>
void __stcs(T* p, std::type_identity_t<T> value, const std::source_location& where = std::source_location::current()) {
  hostcuda::store(p, value, where);
}

#pragma GCC visibility pop
