// B2 in bfloat16.
#include "depthwise_conv_bn_act/kernel.cuh"

namespace effnet_kernels::cuda {

template cudaError_t launch_depthwise_backward_as<BFloat16, Layout::nchw>(const DepthwiseBackwardParams&, cudaStream_t);
template cudaError_t launch_depthwise_backward_as<BFloat16, Layout::nhwc>(const DepthwiseBackwardParams&, cudaStream_t);

}  // namespace effnet_kernels::cuda
