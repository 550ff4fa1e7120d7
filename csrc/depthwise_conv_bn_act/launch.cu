// The launches of the depthwise kernels. Those by dtype are compiled in files of their own.
#include "depthwise_conv_bn_act/cuda.h"
#include "depthwise_conv_bn_act/sum.cuh"

namespace effnet_kernels::cuda {

template <class T, Layout layout>
cudaError_t launch_depthwise_forward_as(const DepthwiseForwardParams&, cudaStream_t);
template <class T, Layout layout>
cudaError_t launch_depthwise_backward_as(const DepthwiseBackwardParams&, cudaStream_t);

cudaError_t launch_depthwise_forward(const DepthwiseForwardParams& p, cudaStream_t stream) {
  return dispatch_activation_dtype(p.dtype, [&](auto type) {
    return dispatch_layout(p.plan.layout, [&](auto layout) {
      return launch_depthwise_forward_as<typename decltype(type)::type, layout()>(p, stream);
    });
  });
}

cudaError_t launch_depthwise_backward(const DepthwiseBackwardParams& p, cudaStream_t stream) {
  return dispatch_activation_dtype(p.dtype, [&](auto type) {
    return dispatch_layout(p.plan.layout, [&](auto layout) {
      return launch_depthwise_backward_as<typename decltype(type)::type, layout()>(p, stream);
    });
  });
}

cudaError_t launch_depthwise_sum(const DepthwiseSumParams& p, cudaStream_t stream) {
  const int64_t rows = p.taps + (p.prologue ? 2 : 0);
  Grid grid = merge_grid(p.channels, int(sizeof(float)));
  grid.blocks *= rows;
  return launch("depthwise_sum", depthwise_sum_kernel, grid, p, stream);
}

}  // namespace effnet_kernels::cuda
