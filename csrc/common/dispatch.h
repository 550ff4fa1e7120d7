// Run-time values to compile-time ones, by template instead of macro: f is called with one tag.
#pragma once

#include <type_traits>
#include <utility>

#include "common/activation.h"
#include "common/half.h"

// Dispatch happens on the host and, where a template per case would multiply the kernels, in device code.
#ifdef __CUDACC__
#define EK_HOST_DEVICE __host__ __device__
#else
#define EK_HOST_DEVICE
#endif

namespace effnet_kernels {

enum class DType { float32, float16, bfloat16, float64 };
enum class Layout { nchw, nhwc };

template <class T>
struct Type {
  using type = T;
};
template <auto value>
using Constant = std::integral_constant<decltype(value), value>;

template <class F>
decltype(auto) dispatch_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float16:
      return f(Type<Half>{});
    case DType::bfloat16:
      return f(Type<BFloat16>{});
    case DType::float64:
      return f(Type<double>{});
    case DType::float32:
      break;
  }
  return f(Type<float>{});
}

// The type per-channel vectors and sums have: float64 for float64, else float32.
template <class F>
decltype(auto) dispatch_accumulator(DType dtype, F&& f) {
  return dtype == DType::float64 ? f(Type<double>{}) : f(Type<float>{});
}

template <class F>
decltype(auto) dispatch_layout(Layout layout, F&& f) {
  return layout == Layout::nhwc ? f(Constant<Layout::nhwc>{}) : f(Constant<Layout::nchw>{});
}

// The activations that follow a BatchNorm; gates are not among them.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class F>
EK_HOST_DEVICE decltype(auto) dispatch_batch_norm_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::relu:
      return f(Constant<Activation::relu>{});
    case Activation::relu6:
      return f(Constant<Activation::relu6>{});
    case Activation::silu:
      return f(Constant<Activation::silu>{});
    case Activation::hardswish:
      return f(Constant<Activation::hardswish>{});
    default:
      return f(Constant<Activation::identity>{});
  }
}

#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class F>
EK_HOST_DEVICE decltype(auto) dispatch_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::sigmoid:
      return f(Constant<Activation::sigmoid>{});
    case Activation::hardsigmoid:
      return f(Constant<Activation::hardsigmoid>{});
    default:
      return dispatch_batch_norm_activation(activation, f);
  }
}

}  // namespace effnet_kernels
