// The device that is simulated: its limits, and what kernels have opted into.
#pragma once

#include <cstddef>
#include <map>
#include <string>

namespace hostcuda {

// An H100's, unless set otherwise.
struct Device {
  int compute_capability_major = 9;
  int compute_capability_minor = 0;
  int multiprocessors = 132;
  int threads_per_block = 1024;
  int threads_per_multiprocessor = 2048;
  int blocks_per_multiprocessor = 32;
  int registers_per_block = 65536;
  int registers_per_multiprocessor = 65536;
  int shared_memory_per_block = 48 * 1024;
  int shared_memory_per_block_optin = 227 * 1024;
  int shared_memory_per_multiprocessor = 228 * 1024;
  int reserved_shared_memory_per_block = 1024;
  int l2_cache_bytes = 50 * 1024 * 1024;
};

extern Device device;

// Replaces the limits that are named and leaves the others as they are by default.
void set_device(const std::map<std::string, int>& limits);

// The most dynamic shared memory that the kernel may be launched with.
std::size_t dynamic_shared_limit(const void* kernel);

}  // namespace hostcuda
