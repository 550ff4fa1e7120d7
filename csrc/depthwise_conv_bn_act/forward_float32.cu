// F2 in float32.
#include "depthwise_conv_bn_act/kernel.cuh"

namespace effnet_kernels::cuda {

template cudaError_t launch_depthwise_forward_as<float, Layout::nchw>(const DepthwiseForwardParams&, cudaStream_t);
template cudaError_t launch_depthwise_forward_as<float, Layout::nhwc>(const DepthwiseForwardParams&, cudaStream_t);

}  // namespace effnet_kernels::cuda
