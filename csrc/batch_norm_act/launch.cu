// The launches of batch_norm_act's kernels.
#include "batch_norm_act/kernel.cuh"

namespace effnet_kernels::cuda {

cudaError_t launch_statistics(const StatisticsParams& p, cudaStream_t stream) {
  const auto kernel = [](auto type, auto layout) { return statistics_kernel<typename decltype(type)::type, layout()>; };
  constexpr int kCountAndTwoPerChannel = -2;
  return launch_stream("statistics", p, 0, kernel, kCountAndTwoPerChannel, stream);
}

cudaError_t launch_merge_statistics(const MergeParams& p, cudaStream_t stream) {
  return launch("merge_statistics", merge_statistics_kernel, merge_grid(p.channels, 3 * int(sizeof(double))), p,
                stream);
}

cudaError_t launch_normalize(const NormalizeParams& p, cudaStream_t stream) {
  const auto kernel = [](auto type, auto layout) { return normalize_kernel<typename decltype(type)::type, layout()>; };
  return launch_stream("normalize", p, 4, kernel, 0, stream);
}

cudaError_t launch_backward_sums(const BackwardSumsParams& p, cudaStream_t stream) {
  const auto kernel = [](auto type, auto layout) {
    return backward_sums_kernel<typename decltype(type)::type, layout()>;
  };
  return launch_stream("backward_sums", p, 4, kernel, 1, stream);
}

cudaError_t launch_batch_norm_gradient(const BatchNormGradientParams& p, cudaStream_t stream) {
  return launch("batch_norm_gradient", batch_norm_gradient_kernel, merge_grid(p.channels, 2 * int(sizeof(float))), p,
                stream);
}

cudaError_t launch_input_gradient(const InputGradientParams& p, cudaStream_t stream) {
  const auto kernel = [](auto type, auto layout) {
    return input_gradient_kernel<typename decltype(type)::type, layout()>;
  };
  return launch_stream("input_gradient", p, 8, kernel, 0, stream);
}

cudaError_t launch_update_running_stats(const RunningStatsParams& p, cudaStream_t stream) {
  return launch("update_running_stats", update_running_stats_kernel,
                {ceil_div(p.channels, kStreamThreads), kStreamThreads, 0}, p, stream);
}

}  // namespace effnet_kernels::cuda
