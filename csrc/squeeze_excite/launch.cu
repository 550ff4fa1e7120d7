// The launches of squeeze_excite's kernels.
#include "squeeze_excite/kernel.cuh"

namespace effnet_kernels::cuda {

cudaError_t launch_pool(const PoolParams& p, cudaStream_t stream) {
  const auto kernel = [](auto type, auto layout) { return pool_kernel<typename decltype(type)::type, layout()>; };
  return launch_stream("pool", p, 4, kernel, 1, stream);
}

cudaError_t launch_excite(const ExciteParams& p, cudaStream_t stream) {
  const int bytes = kExciteThreads * int(sizeof(float));
  return launch("excite", excite_kernel, {p.images, kExciteThreads, bytes}, p, stream);
}

cudaError_t launch_excite_backward(const ExciteBackwardParams& p, cudaStream_t stream) {
  const cudaError_t status = launch("excite_backward", excite_backward_kernel,
                                    {p.images, kExciteThreads, reduce_bytes(1, kExciteThreads)}, p, stream);
  if (status != cudaSuccess) return status;
  const int64_t outputs = 2 * p.channels * p.squeezed + p.channels + p.squeezed;
  return launch("excite_weight_gradient", excite_weight_gradient_kernel,
                {ceil_div(outputs, kExciteThreads), kExciteThreads, 0}, p, stream);
}

}  // namespace effnet_kernels::cuda
