// Launching a kernel: the one place that calls CUDA's launch function. An error is returned, never swallowed.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/cuda/types.h"
#ifdef EFFNET_HOSTCUDA
#include <hostcuda.h>
#endif

namespace effnet_kernels::cuda {

inline constexpr int64_t kGridLimit = 2147483647;

struct Grid {
  int64_t blocks;
  int threads;
  int shared_bytes;
};

// Kernels take one POD struct. No blocks: nothing to do, which CUDA itself would refuse.
template <class Params>
cudaError_t launch(const char* name, void (*kernel)(Params), const Grid& grid, const Params& params,
                   cudaStream_t stream) {
  if (grid.blocks == 0) return cudaSuccess;
  if (grid.blocks > kGridLimit) return cudaErrorInvalidConfiguration;
  constexpr int kWithoutOptIn = 48 * 1024;
  if (grid.shared_bytes > kWithoutOptIn) {
    const cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.shared_bytes);
    if (status != cudaSuccess) return status;
  }
#ifdef EFFNET_HOSTCUDA
  hostcuda::name_next_launch(name);
#else
  static_cast<void>(name);
#endif
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.dynamicSmemBytes = static_cast<size_t>(grid.shared_bytes);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace effnet_kernels::cuda
