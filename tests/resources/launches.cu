// Prints every launch that the CUDA launchers make for the shapes on standard input, one per line: the kernel's mangled
// name, threads and dynamic shared memory of a block. It needs no GPU: what a launch calls in CUDA's runtime is
// replaced and notes its arguments, so the planner and the launchers are the library's own.
//
// Arguments: multiprocessors, shared memory of a block with opt-in, shared memory of a multiprocessor.
// Input: lines of `stream C PIXELS`, `depthwise C HEIGHT WIDTH K STRIDE OUT_HEIGHT OUT_WIDTH TOP LEFT` and
// `excite C SQUEEZED`.
#include <iostream>
#include <map>
#include <string>

#include "batch_norm_act/launch.cu"
#include "depthwise_conv_bn_act/launch.cu"
#include "squeeze_excite/launch.cu"

namespace {

std::map<const void*, std::string>& kernels() {
  static std::map<const void*, std::string> names;
  return names;
}

void print(const std::string& kernel, int64_t threads, int64_t shared_bytes) {
  std::cout << kernel << ' ' << threads << ' ' << shared_bytes << '\n';
}

}  // namespace

// The linker puts these in the place of the functions of the same names (--wrap).
extern "C" {
void __real___cudaRegisterFunction(void**, const char*, char*, const char*, int, uint3*, uint3*, dim3*, dim3*, int*);
void __wrap___cudaRegisterFunction(void** module, const char* host, char* device, const char* name, int threads,
                                   uint3* thread, uint3* block, dim3* threads3, dim3* blocks3, int* warp) {
  kernels()[host] = name;
  __real___cudaRegisterFunction(module, host, device, name, threads, thread, block, threads3, blocks3, warp);
}
cudaError_t __wrap_cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t __wrap_cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void**) {
  print(kernels().at(kernel), config->blockDim.x, int64_t(config->dynamicSmemBytes));
  return cudaSuccess;
}
}

namespace effnet_kernels::cuda {

// The instantiations by dtype are the slowest part of the library to compile, and take their grid from the plan as it is.
template <class T, Layout layout>
void print_depthwise(const std::string& kernel, const DepthwisePlan& p) {
  const char* type = std::is_same_v<T, float> ? "f" : std::is_same_v<T, Half> ? "NS_4HalfE" : "NS_8BFloat16E";
  const auto number = [](int value) { return std::to_string(value) + "E"; };
  print("_ZN14effnet_kernels4cuda" + std::to_string(kernel.size()) + kernel + "I" + type + "LNS_6LayoutE" +
            number(int(layout)) + "Li" + number(p.shape.kernel_size) + "Li" + number(p.shape.stride) + "E",
        p.threads(), p.shared_bytes);
}
template <class T, Layout layout>
cudaError_t launch_depthwise_forward_as(const DepthwiseForwardParams& p, cudaStream_t) {
  print_depthwise<T, layout>("depthwise_forward_kernel", p.plan);
  return cudaSuccess;
}
template <class T, Layout layout>
cudaError_t launch_depthwise_backward_as(const DepthwiseBackwardParams& p, cudaStream_t) {
  print_depthwise<T, layout>("depthwise_backward_kernel", p.plan);
  return cudaSuccess;
}

namespace {

constexpr int64_t kImages = 32;  // no block's size depends on it

void stream(const Device& device, DType dtype, Layout layout, int64_t channels, int64_t pixels) {
  const int vector = dtype == DType::float32 ? 4 : 8;
  const StreamPlan plan = stream_plan(device.multiprocessors, layout, vector, kImages, channels, pixels, true);
  const auto launch = [&](auto function, auto params) {
    params.dtype = dtype;
    params.plan = plan;
    function(params, nullptr);
  };
  launch(launch_statistics, StatisticsParams{});
  launch(launch_normalize, NormalizeParams{});
  launch(launch_backward_sums, BackwardSumsParams{});
  launch(launch_input_gradient, InputGradientParams{});
  launch(launch_pool, PoolParams{});
  MergeParams merge{};
  merge.channels = channels;
  launch_merge_statistics(merge, nullptr);
  BatchNormGradientParams gradient{};
  gradient.channels = channels;
  launch_batch_norm_gradient(gradient, nullptr);
  RunningStatsParams running{};
  running.channels = channels;
  launch_update_running_stats(running, nullptr);
}

void depthwise(const Device& device, DType dtype, Layout layout, const DepthwiseShape& shape) {
  const int vector = dtype == DType::float32 ? 4 : 8;
  DepthwiseForwardParams forward{};
  forward.dtype = dtype;
  forward.plan = depthwise_plan(device, layout, vector, shape, false, true);
  launch_depthwise_forward(forward, nullptr);
  DepthwiseBackwardParams backward{};
  backward.dtype = dtype;
  backward.plan = depthwise_plan(device, layout, vector, shape, true, true);
  launch_depthwise_backward(backward, nullptr);
  DepthwiseSumParams sum{};
  sum.channels = shape.channels;
  sum.taps = shape.taps();
  launch_depthwise_sum(sum, nullptr);
}

void excite(int64_t channels, int64_t squeezed) {
  ExciteParams forward{};
  ExciteBackwardParams backward{};
  forward.images = backward.images = kImages;
  forward.channels = backward.channels = channels;
  forward.squeezed = backward.squeezed = squeezed;
  launch_excite(forward, nullptr);
  launch_excite_backward(backward, nullptr);
}

int run(const Device& device, std::istream& lines) {
  for (std::string kind; lines >> kind;) {
    int64_t channels = 0, second = 0;
    lines >> channels >> second;
    DepthwiseShape shape{kImages, channels, second, 0, 0, 0, 0, 0, 0, 0};
    if (kind == "depthwise") {
      lines >> shape.width >> shape.kernel_size >> shape.stride >> shape.out_height >> shape.out_width >> shape.top >>
          shape.left;
    }
    if (!lines) return 1;
    if (kind == "excite") {
      excite(channels, second);
      continue;
    }
    for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16}) {
      for (const Layout layout : {Layout::nchw, Layout::nhwc}) {
        if (kind == "stream") {
          stream(device, dtype, layout, channels, second);
        } else {
          depthwise(device, dtype, layout, shape);
        }
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace effnet_kernels::cuda

int main(int count, char** arguments) {
  if (count != 4) return 1;
  return effnet_kernels::cuda::run({std::stoi(arguments[1]), std::stoi(arguments[2]), std::stoi(arguments[3])},
                                   std::cin);
}
