// How this package was built and what it runs on, for Python and the tests. No torch in it: pybind11 and the stable ABI
// cannot share a library.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "common/cpu/capability.h"

namespace effnet_kernels {
namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "g++ " __VERSION__;
#else
  return "unknown";
#endif
}

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  std::istringstream stream(list);
  for (std::string part; std::getline(stream, part, ';');) {
    if (!part.empty()) parts.push_back(part);
  }
  return parts;
}

std::vector<std::string> compiled_capabilities() {
  std::vector<std::string> names;
  for (const cpu::Capability capability : cpu::kCompiled) names.emplace_back(cpu::name(capability));
  return names;
}

pybind11::dict facts() {
  pybind11::dict result;
  result["version"] = EFFNET_KERNELS_VERSION;
  result["torch_version"] = EFFNET_KERNELS_TORCH_VERSION;
  result["torch_cuda_version"] = EFFNET_KERNELS_TORCH_CUDA_VERSION;
  result["compiler"] = compiler();
  result["nvcc_version"] = EFFNET_KERNELS_NVCC_VERSION;
  result["cuda_architectures"] = split(EFFNET_KERNELS_CUDA_ARCHITECTURES);
  result["cpu_capabilities"] = compiled_capabilities();
  return result;
}

}  // namespace
}  // namespace effnet_kernels

PYBIND11_MODULE(_plan, m) {
  m.doc() = "Build facts of effnet_kernels.";
  m.def("facts", &effnet_kernels::facts, "How the package was built.");
  m.def(
      "cpu_capability", [] { return effnet_kernels::cpu::name(effnet_kernels::cpu::capability()); },
      "The instruction set that the CPU kernels run with in this process.");
  m.def("processors", &std::thread::hardware_concurrency, "How many processors this process may run on.");
}
