#include "device.h"

#include <stdexcept>
#include <unordered_map>
#include <utility>
#include <cuda_runtime.h>

namespace hostcuda {

Device device;

namespace {

std::unordered_map<const void*, int> opted_in;
cudaError_t last_error = cudaSuccess;

struct Limit {
  const char* name;
  int Device::* member;
  cudaDeviceAttr attribute;
};

constexpr Limit kLimits[] = {
    {"compute_capability_major", &Device::compute_capability_major, cudaDevAttrComputeCapabilityMajor},
    {"compute_capability_minor", &Device::compute_capability_minor, cudaDevAttrComputeCapabilityMinor},
    {"multiprocessors", &Device::multiprocessors, cudaDevAttrMultiProcessorCount},
    {"threads_per_block", &Device::threads_per_block, cudaDevAttrMaxThreadsPerBlock},
    {"threads_per_multiprocessor", &Device::threads_per_multiprocessor, cudaDevAttrMaxThreadsPerMultiProcessor},
    {"blocks_per_multiprocessor", &Device::blocks_per_multiprocessor, cudaDevAttrMaxBlocksPerMultiprocessor},
    {"registers_per_block", &Device::registers_per_block, cudaDevAttrMaxRegistersPerBlock},
    {"registers_per_multiprocessor", &Device::registers_per_multiprocessor, cudaDevAttrMaxRegistersPerMultiprocessor},
    {"shared_memory_per_block", &Device::shared_memory_per_block, cudaDevAttrMaxSharedMemoryPerBlock},
    {"shared_memory_per_block_optin", &Device::shared_memory_per_block_optin, cudaDevAttrMaxSharedMemoryPerBlockOptin},
    {"shared_memory_per_multiprocessor", &Device::shared_memory_per_multiprocessor,
     cudaDevAttrMaxSharedMemoryPerMultiprocessor},
    {"reserved_shared_memory_per_block", &Device::reserved_shared_memory_per_block,
     cudaDevAttrReservedSharedMemoryPerBlock},
    {"l2_cache_bytes", &Device::l2_cache_bytes, cudaDevAttrL2CacheSize},
};

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace

void set_device(const std::map<std::string, int>& limits) {
  Device chosen;
  for (const auto& [name, value] : limits) {
    const Limit* found = nullptr;
    for (const Limit& limit : kLimits) {
      if (name == limit.name) found = &limit;
    }
    if (found == nullptr) throw std::invalid_argument("the device has no limit '" + name + "'");
    chosen.*found->member = value;
  }
  device = chosen;
  opted_in.clear();
}

std::size_t dynamic_shared_limit(const void* kernel) {
  const auto found = opted_in.find(kernel);
  return static_cast<std::size_t>(found == opted_in.end() ? device.shared_memory_per_block : found->second);
}

cudaError_t set_function_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) {
    throw std::runtime_error("cudaFuncSetAttribute: attribute " + std::to_string(attribute) + " is not simulated");
  }
  if (value < 0 || value > device.shared_memory_per_block_optin) return remember(cudaErrorInvalidValue);
  opted_in[kernel] = value;
  return cudaSuccess;
}

}  // namespace hostcuda

using namespace hostcuda;

cudaError_t cudaGetDevice(int* number) {
  *number = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int number) {
  if (number != 0) return remember(cudaErrorInvalidDevice);
  for (const Limit& limit : kLimits) {
    if (limit.attribute == attribute) {
      *value = device.*limit.member;
      return cudaSuccess;
    }
  }
  throw std::runtime_error("cudaDeviceGetAttribute: attribute " + std::to_string(attribute) + " is not simulated");
}

cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    default:
      return "an error that this runtime does not return";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    default:
      return cudaGetErrorName(error);
  }
}
