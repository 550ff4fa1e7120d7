// The CUDA kernels' launch plans, how this package was built and what it runs on, for Python and the tests. No torch in
// it: pybind11 and the stable ABI cannot share a library.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "batch_norm_act/plan.h"
#include "common/cpu/capability.h"
#include "depthwise_conv_bn_act/plan.h"

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

Layout layout_named(const std::string& name) { return name == "channels_last" ? Layout::nhwc : Layout::nchw; }

pybind11::dict stream_plan(int multiprocessors, const std::string& layout, int vector, int64_t images, int64_t channels,
                           int64_t pixels) {
  const cuda::StreamPlan p =
      cuda::stream_plan(multiprocessors, layout_named(layout), vector, images, channels, pixels, true);
  pybind11::dict result;
  result["blocks"] = p.blocks();
  result["threads"] = p.threads();
  result["across"] = p.across;
  result["down"] = p.down;
  result["slices"] = p.slices;
  result["chunks"] = p.chunks;
  result["chunk_pixels"] = p.chunk_pixels;
  return result;
}

pybind11::dict depthwise_plan(int multiprocessors, int shared_per_block, int shared_per_multiprocessor,
                              const std::string& layout, int vector, const std::vector<int64_t>& shape, int kernel_size,
                              int stride, const std::vector<int>& padding, bool backward) {
  const auto out_size = [&](int64_t size, int before, int after) {
    return (size + before + after - kernel_size) / stride + 1;
  };
  const DepthwiseShape depthwise{shape.at(0),
                                 shape.at(1),
                                 shape.at(2),
                                 shape.at(3),
                                 out_size(shape.at(2), padding.at(0), padding.at(1)),
                                 out_size(shape.at(3), padding.at(2), padding.at(3)),
                                 kernel_size,
                                 stride,
                                 padding.at(0),
                                 padding.at(2)};
  const cuda::Device device{multiprocessors, shared_per_block, shared_per_multiprocessor};
  const cuda::DepthwisePlan p = cuda::depthwise_plan(device, layout_named(layout), vector, depthwise, backward, true);
  pybind11::dict result;
  result["blocks"] = p.blocks();
  result["threads"] = p.threads();
  result["shared_bytes"] = p.shared_bytes;
  result["channels"] = p.channels;
  result["tile_columns"] = p.tile_columns;
  result["strip_rows"] = p.strip_rows;
  result["stage_rows"] = p.stage_rows;
  result["images_per_block"] = p.images_per_block;
  result["slices"] = p.slices;
  result["tiles"] = p.tiles;
  result["strips"] = p.strips;
  result["groups"] = p.groups;
  return result;
}

}  // namespace
}  // namespace effnet_kernels

PYBIND11_MODULE(_plan, m) {
  m.doc() = "Launch plans and build facts of effnet_kernels.";
  m.def("stream_plan", &effnet_kernels::stream_plan);
  m.def("depthwise_plan", &effnet_kernels::depthwise_plan);
  m.def("facts", &effnet_kernels::facts, "How the package was built.");
  m.def(
      "cpu_capability", [] { return effnet_kernels::cpu::name(effnet_kernels::cpu::capability()); },
      "The instruction set that the CPU kernels run with in this process.");
  m.def("processors", &std::thread::hardware_concurrency, "How many processors this process may run on.");
}
