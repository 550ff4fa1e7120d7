// The launches of squeeze_excite's kernels.
#include "squeeze_excite/kernel.cuh"

namespace effnet_kernels::cuda {

cudaError_t launch_pool(const PoolParams& p, cudaStream_t stream) {
  const auto kernel = [](auto type, auto layout) { return pool_kernel<typename decltype(type)::type, layout()>; };
  return launch_stream("pool", p, 4, kernel, 1, stream);
}

cudaError_t launch_excite(const ExciteParams& p, cudaStream_t stream) {
  const int bytes = kExciteThreads * kExciteImages * int(sizeof(float));
  return launch("excite", excite_kernel, {ceil_div(p.images, kExciteImages), kExciteThreads, bytes}, p, stream);
}

cudaError_t launch_excite_backward(const ExciteBackwardParams& p, cudaStream_t stream) {
  const int bytes = 2 * reduce_bytes(kExciteImages, kExciteThreads);
  const cudaError_t status = launch("excite_backward", excite_backward_kernel,
                                    {ceil_div(p.images, kExciteImages), kExciteThreads, bytes}, p, stream);
  if (status != cudaSuccess) return status;
  const int64_t blocks = 2 * ceil_div(p.channels, kExciteThreads) * ceil_div(p.squeezed, kGradientRows);
  return launch("excite_weight_gradient", excite_weight_gradient_kernel,
                {blocks, kExciteThreads, kExciteThreads * int(sizeof(float))}, p, stream);
}

}  // namespace effnet_kernels::cuda
