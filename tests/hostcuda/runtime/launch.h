// Launches: what they are refused for, the order of their blocks, and the record that each leaves.
#pragma once

#include <cstddef>
#include <string>
#include <vector>
#include <cuda_runtime.h>
#include "traffic.h"

namespace hostcuda {

struct Record {
  std::string kernel;
  dim3 grid, block;
  std::size_t dynamic_shared_bytes;
  std::vector<BufferTraffic> buffers;
};

// Of the launches that were completed.
extern std::vector<Record> records;

}  // namespace hostcuda
