// Launches the planted kernels by their names.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <optional>
#include <string>
#include "planted.cuh"

namespace py = pybind11;

namespace {

using Kernel = void (*)(const float*, float*, int);
using Extent = std::array<unsigned, 3>;

const std::map<std::string, Kernel> kernels = {
    {"transpose", planted::transpose<true>},
    {"transpose_unsynchronised", planted::transpose<false>},
    {"block_sum", planted::block_sum},
    {"warp_operations", planted::warp_operations},
    {"warp_halves", planted::warp_halves},
    {"pipelined", planted::pipelined<1>},
    {"pipelined_waiting_late", planted::pipelined<2>},
    {"pipelined_unwaited", planted::pipelined<-1>},
    {"rounded", planted::rounded},
    {"uninitialised_4", planted::uninitialised<4>},
    {"uninitialised_8", planted::uninitialised<8>},
    {"read_past", planted::read_past},
    {"write_past", planted::write_past},
    {"write_input", planted::write_input},
    {"misaligned_global", planted::misaligned_global},
    {"misaligned_shared", planted::misaligned_shared},
    {"shared_read_past", planted::shared_read_past},
    {"shared_write_past", planted::shared_write_past},
    {"early_return", planted::early_return},
    {"barrier_in_branch", planted::barrier_in_branch},
    {"barrier_against_warp", planted::barrier_against_warp},
    {"missing_lane", planted::missing_lane},
    {"inactive_lane", planted::inactive_lane},
    {"unnamed_lane", planted::unnamed_lane},
};

void launch(const std::string& name, const Extent& grid, const Extent& block, std::size_t shared_bytes,
            std::optional<int> opt_in, std::uintptr_t in, std::uintptr_t out, int n, bool named) {
  const Kernel kernel = kernels.at(name);
  if (opt_in.has_value()) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, *opt_in);
    if (error != cudaSuccess) throw py::value_error(cudaGetErrorName(error));
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid[0], grid[1], grid[2]);
  config.blockDim = dim3(block[0], block[1], block[2]);
  config.dynamicSmemBytes = shared_bytes;
  if (named) hostcuda::name_next_launch(name.c_str());
  cudaLaunchKernelEx(&config, kernel, reinterpret_cast<const float*>(in), reinterpret_cast<float*>(out), n);
}

int multiprocessors() {
  int device = -1, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device);
  return value;
}

void fill(std::uintptr_t p, int value, std::size_t bytes) { cudaMemsetAsync(reinterpret_cast<void*>(p), value, bytes); }

}  // namespace

[[gnu::visibility("hidden")]] void hostcuda_bind(py::module_& module) {
  module.def("launch", &launch, py::arg("name"), py::kw_only(), py::arg("grid"), py::arg("block"),
             py::arg("shared_bytes"), py::arg("opt_in"), py::arg("input"), py::arg("output"), py::arg("n"),
             py::arg("named"));
  module.def("multiprocessors", &multiprocessors);
  module.def("fill", &fill);
}
