// B2 in float32.
#include "depthwise_conv_bn_act/kernel.cuh"

namespace effnet_kernels::cuda {

template cudaError_t launch_depthwise_backward_as<float, Layout::nchw>(const DepthwiseBackwardParams&, cudaStream_t);
template cudaError_t launch_depthwise_backward_as<float, Layout::nhwc>(const DepthwiseBackwardParams&, cudaStream_t);

}  // namespace effnet_kernels::cuda
