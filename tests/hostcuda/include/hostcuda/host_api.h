// The host API. What a launch is refused for is thrown; a function's other errors are returned, as CUDA returns them.
#pragma once

#include <cstddef>
#include <tuple>
#include <typeinfo>
#include <utility>
#include <driver_types.h>

#pragma GCC visibility push(hidden)

namespace hostcuda {

// Runs `run(call)` once for every thread. `kernel` and `type` name it where name_next_launch has not.
void launch(const cudaLaunchConfig_t& config, const void* kernel, const std::type_info& type, void (*run)(void*),
            void* call);
cudaError_t set_function_attribute(const void* kernel, cudaFuncAttribute attribute, int value);

}  // namespace hostcuda

template <typename... Expected, typename... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...), Actual&&... arguments) {
  std::tuple<void (*)(Expected...), Expected...> call(kernel, std::forward<Actual>(arguments)...);
  const auto run = [](void* stored) {
    // Every thread has parameters of its own.
    std::apply([](auto function, const Expected&... values) { function(values...); },
               *static_cast<const decltype(call)*>(stored));
  };
  hostcuda::launch(*config, reinterpret_cast<const void*>(kernel), typeid(*kernel), run, &call);
  return cudaSuccess;
}

template <typename T>
cudaError_t cudaFuncSetAttribute(T* kernel, cudaFuncAttribute attribute, int value) {
  return hostcuda::set_function_attribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
const char* cudaGetErrorString(cudaError_t error);
const char* cudaGetErrorName(cudaError_t error);
cudaError_t cudaMemsetAsync(void* p, int value, std::size_t bytes, cudaStream_t stream = nullptr);

#pragma GCC visibility pop
