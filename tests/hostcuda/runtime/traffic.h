// The announced buffers, and what a launch moves between them and its threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>
#include <cuda_runtime.h>

namespace hostcuda {

struct BufferTraffic {
  std::string name;
  Traffic read, written;
  std::uint64_t wide_accesses = 0, narrow_accesses = 0;
};

void begin_traffic();
// In the order of their announcement; buffers of one name are one.
std::vector<BufferTraffic> collect_traffic();
// A fill of all of [p, p + bytes).
void count_fill(const void* p, std::size_t bytes, const std::source_location& where);

}  // namespace hostcuda
