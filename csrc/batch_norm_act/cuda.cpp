// batch_norm_act on CUDA: act(BN(x)) · keep[n] (+ residual). Forward: one pass for the statistics (training), one to
// normalize. Backward: one pass over (grad, x) for dβ and dγ, one for dx.
#include "batch_norm_act/cuda.h"

#include <torch/csrc/stable/library.h>

#include "common/checks.h"
#include "common/cuda/call.h"

namespace effnet_kernels::cuda {
namespace {

Parameter keep_of(Call& call, const OptionalTensor& keep) {
  return keep ? call.parameter(*keep, "keep") : Call::none();
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& gamma, const Tensor& beta,
                                           const OptionalTensor& mean, const OptionalTensor& var,
                                           const OptionalTensor& keep, const OptionalTensor& residual, double eps,
                                           int64_t activation) {
  check_activations(x, "x");
  check_batch_norm(gamma, beta, mean, var, x.size(1), x, kBatchNorm);
  if (keep) check_values(*keep, x.size(0), x, "keep");
  const Activation act = activation_of(activation);
  Call call(x);
  if (residual) check_dense_like(*residual, x, call.layout, "residual");
  Tensor out = torch::stable::empty_like(x);
  const bool aligned = call.aligned({&x, &out, residual ? &*residual : &out});
  const StreamPlan plan = call.stream_plan(x, aligned);
  const int64_t computed = mean ? 0 : x.size(1);
  Tensor batch_mean = empty_vector(x, {computed}), batch_var = empty_vector(x, {computed});
  const void* const data = call.read(x, "x");
  if (!mean) {
    const Moments moments = call.moments(plan.parts(), computed);
    check(launch_statistics({call.dtype, plan, data, moments}, call.stream), "statistics");
    check(launch_merge_statistics({plan.parts(), computed, moments, static_cast<float*>(call.write(batch_mean, "mean")),
                                   static_cast<float*>(call.write(batch_var, "var"))},
                                  call.stream),
          "merge_statistics");
  }
  const BatchNorm bn = call.batch_norm(gamma, beta, mean ? *mean : batch_mean, mean ? *var : batch_var, eps);
  check(launch_normalize({call.dtype, plan, act, bn, data, keep_of(call, keep), true,
                          residual ? call.read(*residual, "residual") : nullptr, call.write(out, "out")},
                         call.stream),
        "normalize");
  return {out, batch_mean, batch_var};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& gamma,
                                            const Tensor& beta, const Tensor& mean, const Tensor& var,
                                            const OptionalTensor& keep, bool training, double eps, int64_t activation) {
  check_activations(x, "x");
  check_batch_norm(gamma, beta, mean, var, x.size(1), x, kBatchNorm);
  if (keep) check_values(*keep, x.size(0), x, "keep");
  const Activation act = activation_of(activation);
  Call call(x);
  check_dense_like(grad, x, call.layout, "grad");
  Tensor dx = torch::stable::empty_like(x);
  Tensor dgamma = Call::empty_gradient(gamma), dbeta = Call::empty_gradient(beta);
  const StreamPlan plan = call.stream_plan(x, call.aligned({&x, &grad, &dx}));
  const BatchNorm bn = call.batch_norm(gamma, beta, mean, var, eps);
  const int64_t channels = x.size(1), size = plan.parts() * channels;
  const BackwardSumsParams sums{call.dtype,
                                plan,
                                act,
                                bn,
                                call.read(grad, "grad"),
                                call.read(x, "x"),
                                nullptr,
                                call.floats(size, "a2 sums"),
                                call.floats(size, "a4 sums")};
  check(launch_backward_sums(sums, call.stream), "backward_sums");
  const Parameter factor = keep_of(call, keep);
  const BatchNormGradientParams gradient{plan.images,
                                         plan.chunks,
                                         channels,
                                         plan.pixels,
                                         training,
                                         sums.slope,
                                         sums.slope_x,
                                         factor,
                                         true,
                                         nullptr,
                                         nullptr,
                                         nullptr,
                                         call.gradient(dgamma, "dgamma"),
                                         call.gradient(dbeta, "dbeta"),
                                         call.floats(channels, "mean dv"),
                                         call.floats(channels, "mean dv x")};
  check(launch_batch_norm_gradient(gradient, call.stream), "batch_norm_gradient");
  check(launch_input_gradient({call.dtype,
                               plan,
                               act,
                               bn,
                               {factor, true, nullptr, gradient.mean_dv, gradient.mean_dv_x},
                               sums.grad,
                               sums.x,
                               call.write(dx, "dx")},
                              call.stream),
        "input_gradient");
  return {dx, Call::as_parameter(dgamma, gamma), Call::as_parameter(dbeta, beta)};
}

void update_running_stats(Tensor running_mean, Tensor running_var, const Tensor& mean, const Tensor& var, int64_t count,
                          double momentum) {
  STD_TORCH_CHECK(mean.defined(), "mean: expected a tensor, got none");
  const int64_t channels = mean.numel();
  check_values(mean, channels, mean, "mean");
  check_values(var, channels, mean, "var");
  check_running(running_mean, channels, mean, "running_mean");
  check_running(running_var, channels, mean, "running_var");
  Context call(running_mean);
  Tensor dense_mean = torch::stable::contiguous(running_mean), dense_var = torch::stable::contiguous(running_var);
  check(launch_update_running_stats(
            {channels, count, call.gradient(dense_mean, "running mean"), call.gradient(dense_var, "running var"),
             call.parameter(mean, "mean"), call.parameter(var, "var"), float(momentum)},
            call.stream),
        "update_running_stats");
  if (!running_mean.is_contiguous()) torch::stable::copy_(running_mean, dense_mean);
  if (!running_var.is_contiguous()) torch::stable::copy_(running_var, dense_var);
}

}  // namespace
}  // namespace effnet_kernels::cuda

EK_CUDA_LIBRARY(m) {
  m.impl("batch_norm_act", TORCH_BOX(&effnet_kernels::cuda::forward));
  m.impl("batch_norm_act_backward", TORCH_BOX(&effnet_kernels::cuda::backward));
  m.impl("update_running_stats_", TORCH_BOX(&effnet_kernels::cuda::update_running_stats));
}
