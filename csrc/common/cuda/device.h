// The limits that launch plans are made for.
#pragma once

namespace effnet_kernels::cuda {

struct Device {
  int multiprocessors;
  int shared_per_block;  // bytes, with opt-in
  int shared_per_multiprocessor;
};

}  // namespace effnet_kernels::cuda
