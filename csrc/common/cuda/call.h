// One operator call on a GPU: its device and stream, its tensors' pointers, its scratch memory, its errors. The CUDA side
// of common/tensor.h.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <initializer_list>

#include "batch_norm_act/cuda.h"
#include "common/cuda/types.h"
#include "common/tensor.h"
#ifdef EFFNET_HOSTCUDA
#include <hostcuda.h>
#endif

// The library that the CUDA kernels register in; the host runtime's tests have one of their own, on CPU tensors.
#ifdef EFFNET_HOSTCUDA
#define EK_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(effnet_hostcuda, CPU, m)
#else
#define EK_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(effnet_kernels, CUDA, m)
#endif

namespace effnet_kernels::cuda {

inline void check(cudaError_t status, const char* what) {
  STD_TORCH_CHECK(status == cudaSuccess, what, ": ", cudaGetErrorString(status));
}

inline Device device_limits(int index) {
  Device device{};
  const auto read = [&](int& value, cudaDeviceAttr attribute) {
    check(cudaDeviceGetAttribute(&value, attribute, index), "cudaDeviceGetAttribute");
  };
  read(device.multiprocessors, cudaDevAttrMultiProcessorCount);
  read(device.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  read(device.shared_per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  return device;
}

// The device and stream of a call, and what its kernels are given.
class Context {
 public:
  // `like` says which device, and the dtype of vectors: float32 (float64 is computed on CPU only).
  explicit Context(const Tensor& like) : like_(like) {
#ifdef EFFNET_HOSTCUDA
    hostcuda::withdraw_all();
    device = device_limits(0);
    stream = nullptr;
#else
    const int index = like.get_device_index();
    guard_.emplace(index);
    device = device_limits(index);
    void* current = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(index, &current) == 0, "cannot get the current CUDA stream");
    stream = static_cast<cudaStream_t>(current);
#endif
  }

  // The pointers that kernels get. `name` is what docs/design.md calls the tensor.
  const void* read(const Tensor& t, const char* name) const { return announce(t, name, t.const_data_ptr(), false); }
  void* write(const Tensor& t, const char* name) const {
    return const_cast<void*>(announce(t, name, t.mutable_data_ptr(), true));
  }

  // A parameter of any dtype; dense values are kept until the call ends.
  Parameter parameter(const Tensor& t, const char* name) {
    kept_.push_back(t.is_contiguous() ? t : torch::stable::contiguous(t));
    return {read(kept_.back(), name), dtype_of(t)};
  }
  static Parameter none() { return {nullptr, DType::float32}; }
  BatchNorm batch_norm(const Tensor& gamma, const Tensor& beta, const Tensor& mean, const Tensor& var, double eps) {
    return {parameter(gamma, "gamma"), parameter(beta, "beta"), parameter(mean, "mean"), parameter(var, "var"),
            float(eps)};
  }
  static BatchNorm no_batch_norm() { return {none(), none(), none(), none(), 0.0f}; }

  // The gradient of a parameter is written densely and, once written, put into the parameter's strides.
  ParameterGradient gradient(const Tensor& gradient, const char* name) {
    kept_.push_back(gradient);
    return {write(gradient, name), dtype_of(gradient)};
  }
  static Tensor empty_gradient(const Tensor& parameter) {
    Sizes sizes;
    for (int64_t d = 0; d < parameter.dim(); ++d) sizes.push_back(parameter.size(d));
    return empty_dense(parameter, parameter.scalar_type(), sizes);
  }
  static Tensor as_parameter(const Tensor& gradient, const Tensor& parameter) {
    if (parameter.is_contiguous()) return gradient;
    Tensor strided = torch::stable::empty_like(parameter);
    torch::stable::copy_(strided, gradient);
    return strided;
  }

  // Scratch memory from torch's allocator, kept until the call ends; the stream orders its reuse.
  float* floats(int64_t count, const char* name) {
    kept_.push_back(empty_vector(like_, {count}));
    return static_cast<float*>(write(kept_.back(), name));
  }
  Moments moments(int64_t parts, int64_t channels) {
    return {floats(parts, "counts"), floats(parts * channels, "means"), floats(parts * channels, "m2s")};
  }

  Device device;
  cudaStream_t stream;

 private:
  const void* announce(const Tensor& t, const char* name, const void* data, bool writable) const {
#ifdef EFFNET_HOSTCUDA
    hostcuda::announce(name, data, size_t(t.numel() * t.element_size()), writable);
#else
    static_cast<void>(t), static_cast<void>(name), static_cast<void>(writable);
#endif
    return data;
  }

  const Tensor& like_;
#ifndef EFFNET_HOSTCUDA
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
#endif
  std::vector<Tensor> kept_;
};

// A call on the activation tensor x.
class Call : public Context {
 public:
  explicit Call(const Tensor& x)
      : Context(x), layout(layout_of(x)), dtype(dtype_of(x)), vector(dtype == DType::float32 ? 4 : 8), x_(x) {
    // Offsets in an image are 32-bit in the kernels, and may be a block's stride past its end.
    constexpr int64_t kLargestImage = (int64_t(1) << 31) - (1 << 16);
    STD_TORCH_CHECK(dtype != DType::float64, "float64 is computed on CPU only");
    const int64_t image = x.size(1) * x.size(2) * x.size(3);
    STD_TORCH_CHECK(image <= kLargestImage, "expected at most 2^31 - 2^16 elements in one image, got ", image);
  }

  // Whether 16-byte accesses are possible in all of these activation tensors.
  bool aligned(std::initializer_list<const Tensor*> tensors) const {
    if (layout == Layout::nhwc && x_.size(1) % vector != 0) return false;
    for (const Tensor* t : tensors) {
      if (reinterpret_cast<uintptr_t>(t->const_data_ptr()) % 16 != 0) return false;
    }
    return true;
  }
  StreamPlan stream_plan(const Tensor& t, bool aligned) const {
    return cuda::stream_plan(device.multiprocessors, layout, vector, t.size(0), t.size(1), t.size(2) * t.size(3),
                             aligned);
  }

  const Layout layout;
  const DType dtype;
  const int vector;  // elements in 16 bytes

 private:
  const Tensor& x_;
};

}  // namespace effnet_kernels::cuda
