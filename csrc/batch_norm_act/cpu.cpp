// batch_norm_act on CPU: act(BN(x)) · keep[n] (+ residual). Forward: one pass for the statistics (training), one to
// normalize. Backward: one pass over (grad, x) for dβ and dγ, one for dx.
#include <torch/csrc/stable/library.h>

#include "common/checks.h"
#include "common/cpu/allocate.h"
#include "common/cpu/channels.h"

namespace effnet_kernels::cpu {
namespace {

// keep[n] as a factor per image and channel, or nothing.
template <class A>
Buffer<A> keep_factors(const OptionalTensor& keep, const Extent& extent) {
  if (!keep) return Buffer<A>(0);
  const int64_t row = extent.row();
  const Buffer<A> keeps = read_rows<A>(*keep, 1, extent.images);
  Buffer<A> factors(extent.images * row);
  for (int64_t n = 0; n < extent.images; ++n) {
    for (int64_t c = 0; c < extent.channels; ++c) factors[n * row + c] = keeps[n];
  }
  return factors;
}

template <class A>
const A* data_or_null(const Buffer<A>& buffer) {
  return buffer.size() ? buffer.data() : nullptr;
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& gamma, const Tensor& beta,
                                           const OptionalTensor& mean, const OptionalTensor& var,
                                           const OptionalTensor& keep, const OptionalTensor& residual, double eps,
                                           int64_t activation) {
  check_activations(x, "x");
  check_batch_norm(gamma, beta, mean, var, x.size(1), x, kBatchNorm);
  if (keep) check_values(*keep, x.size(0), x, "keep");
  const Activation act = activation_of(activation);
  const Extent extent = extent_of(x);
  if (residual) check_dense_like(*residual, x, extent.layout, "residual");
  return dispatch_accumulator(extent.dtype, [&](auto type) -> std::tuple<Tensor, Tensor, Tensor> {
    using A = typename decltype(type)::type;
    const int64_t computed = mean ? 0 : extent.channels;
    Statistics<A> statistics =
        mean ? given_statistics<A>(*mean, *var, extent.channels) : batch_statistics<A>(extent, x);
    Tensor batch_mean = empty_vector(x, {computed}), batch_var = empty_vector(x, {computed});
    write_rows(statistics.mean.data(), 1, computed, batch_mean);
    write_rows(statistics.var.data(), 1, computed, batch_var);
    const auto bn = batch_norm_values<A>(gamma, beta, std::move(statistics), extent.channels, eps);
    const Buffer<A> factors = keep_factors<A>(keep, extent);
    Tensor out = allocate_like(x);
    normalize({extent, act, x.const_data_ptr(), bn.affine(), data_or_null(factors),
               residual ? residual->const_data_ptr() : nullptr, out.mutable_data_ptr()});
    return {out, batch_mean, batch_var};
  });
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& gamma,
                                            const Tensor& beta, const Tensor& mean, const Tensor& var,
                                            const OptionalTensor& keep, bool training, double eps, int64_t activation) {
  check_activations(x, "x");
  check_batch_norm(gamma, beta, mean, var, x.size(1), x, kBatchNorm);
  if (keep) check_values(*keep, x.size(0), x, "keep");
  const Activation act = activation_of(activation);
  const Extent extent = extent_of(x);
  check_dense_like(grad, x, extent.layout, "grad");
  return dispatch_accumulator(extent.dtype, [&](auto type) -> std::tuple<Tensor, Tensor, Tensor> {
    using A = typename decltype(type)::type;
    const auto bn =
        batch_norm_values<A>(gamma, beta, given_statistics<A>(mean, var, extent.channels), extent.channels, eps);
    const Buffer<A> factors = keep_factors<A>(keep, extent);
    const auto sums = image_backward_sums<A>(extent, act, grad, x, bn.affine(), false);
    const auto gradient = batch_norm_gradient<A>(extent, sums.slope.data(), sums.slope_x.data(), data_or_null(factors),
                                                 nullptr, nullptr, nullptr, training);
    Tensor dx = allocate_like(x);
    input_gradient({extent,
                    act,
                    grad.const_data_ptr(),
                    x.const_data_ptr(),
                    bn.affine(),
                    {data_or_null(factors), nullptr, gradient.mean_dv.data(), gradient.mean_dv_x.data()},
                    dx.mutable_data_ptr()});
    return {dx, parameter_gradient(gradient.dgamma.data(), 1, extent.channels, gamma),
            parameter_gradient(gradient.dbeta.data(), 1, extent.channels, beta)};
  });
}

// running ← (1 − momentum) · running + momentum · batch, with the unbiased variance.
void update_running_stats(Tensor running_mean, Tensor running_var, const Tensor& mean, const Tensor& var, int64_t count,
                          double momentum) {
  STD_TORCH_CHECK(mean.defined(), "mean: expected a tensor, got none");
  const int64_t channels = mean.numel();
  check_values(mean, channels, mean, "mean");
  check_values(var, channels, mean, "var");
  check_running(running_mean, channels, mean, "running_mean");
  check_running(running_var, channels, mean, "running_var");
  const auto move_toward = [&](Tensor& running, const Tensor& batch, double scale) {
    Buffer<double> values = read_rows<double>(running, 1, channels);
    const Buffer<double> target = read_rows<double>(batch, 1, channels);
    for (int64_t c = 0; c < channels; ++c) {
      values[c] = (1.0 - momentum) * values[c] + momentum * (target[c] * scale);
    }
    if (running.is_contiguous()) {
      write_rows(values.data(), 1, channels, running);
    } else {
      Tensor dense = torch::stable::contiguous(running);
      write_rows(values.data(), 1, channels, dense);
      torch::stable::copy_(running, dense);
    }
  };
  move_toward(running_mean, mean, 1.0);
  move_toward(running_var, var, double(count) / (double(count) - 1.0));
}

}  // namespace
}  // namespace effnet_kernels::cpu

STABLE_TORCH_LIBRARY_IMPL(effnet_kernels, CPU, m) {
  m.impl("batch_norm_act", TORCH_BOX(&effnet_kernels::cpu::forward));
  m.impl("batch_norm_act_backward", TORCH_BOX(&effnet_kernels::cpu::backward));
  m.impl("update_running_stats_", TORCH_BOX(&effnet_kernels::cpu::update_running_stats));
}
