// depthwise_conv_bn_act's kernels and their launches by dtype and layout: forward.cuh (F2), backward.cuh (B2) and sum.cuh.
// The passes around them are batch_norm_act's.
#pragma once

#include "depthwise_conv_bn_act/backward.cuh"
#include "depthwise_conv_bn_act/forward.cuh"
#include "depthwise_conv_bn_act/sum.cuh"

namespace effnet_kernels::cuda {

template <class F>
cudaError_t dispatch_kernel(int kernel_size, int stride, F&& f) {
  const auto with_stride = [&](auto k) { return stride == 1 ? f(k, Constant<1>{}) : f(k, Constant<2>{}); };
  switch (kernel_size) {
    case 5:
      return with_stride(Constant<5>{});
    case 7:
      return with_stride(Constant<7>{});
    default:
      return with_stride(Constant<3>{});
  }
}

inline Grid depthwise_grid(const DepthwisePlan& plan) { return {plan.blocks(), plan.threads(), plan.shared_bytes}; }

// One dtype and layout; the entry points choose among the instantiations, which are files of their own.
template <class T, Layout layout>
cudaError_t launch_depthwise_forward_as(const DepthwiseForwardParams& p, cudaStream_t stream) {
  return dispatch_kernel(p.plan.shape.kernel_size, p.plan.shape.stride, [&](auto k, auto s) {
    return launch("depthwise_forward", depthwise_forward_kernel<T, layout, k(), s()>, depthwise_grid(p.plan), p,
                  stream);
  });
}
template <class T, Layout layout>
cudaError_t launch_depthwise_backward_as(const DepthwiseBackwardParams& p, cudaStream_t stream) {
  return dispatch_kernel(p.plan.shape.kernel_size, p.plan.shape.stride, [&](auto k, auto s) {
    return launch("depthwise_backward", depthwise_backward_kernel<T, layout, k(), s()>, depthwise_grid(p.plan), p,
                  stream);
  });
}

}  // namespace effnet_kernels::cuda
