// F2 in float16.
#include "depthwise_conv_bn_act/kernel.cuh"

namespace effnet_kernels::cuda {

template cudaError_t launch_depthwise_forward_as<Half, Layout::nchw>(const DepthwiseForwardParams&, cudaStream_t);
template cudaError_t launch_depthwise_forward_as<Half, Layout::nhwc>(const DepthwiseForwardParams&, cudaStream_t);

}  // namespace effnet_kernels::cuda
