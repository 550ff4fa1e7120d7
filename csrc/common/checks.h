// What the operators ask of their arguments, each check with the argument's name. Python has looked at the arguments of the
// public functions already; these hold for a direct call of torch.ops, for the CPU and for the GPU.
#pragma once

#include <initializer_list>

#include "common/tensor.h"

namespace effnet_kernels {

inline bool is_floating(const Tensor& t) {
  const ScalarType type = t.scalar_type();
  return type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16 ||
         type == ScalarType::Double;
}

// Activations that a kernel walks through.
inline void check_activations(const Tensor& x, const char* argument) {
  STD_TORCH_CHECK(x.defined(), argument, ": expected a tensor, got none");
  STD_TORCH_CHECK(x.dim() == 4, argument, ": expected 4 dimensions (N, C, H, W), got ", x.dim());
  STD_TORCH_CHECK(is_floating(x), argument, ": expected float32, float16, bfloat16 or float64");
  STD_TORCH_CHECK(x.size(1) >= 1 && x.size(2) >= 1 && x.size(3) >= 1, argument,
                  ": expected C, H, W of at least 1, got ", x.size(1), ", ", x.size(2), ", ", x.size(3));
  STD_TORCH_CHECK(x.is_contiguous() || is_channels_last(x) || x.numel() == 0, argument,
                  ": expected a dense tensor, contiguous or channels_last");
}

// `count` values of any floating dtype and shape, on the device of `like`.
inline void check_values(const Tensor& t, int64_t count, const Tensor& like, const char* argument) {
  STD_TORCH_CHECK(t.defined(), argument, ": expected a tensor, got none");
  STD_TORCH_CHECK(t.numel() == count, argument, ": expected ", count, " values, got ", t.numel());
  STD_TORCH_CHECK(is_floating(t), argument, ": expected a floating dtype");
  check_device(t, like, argument);
}

// The same, in the dtype of per-channel vectors and dense: what a forward call left for its backward.
inline void check_saved(const Tensor& t, int64_t count, const Tensor& like, const char* argument) {
  check_values(t, count, like, argument);
  const auto dtype = like.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(t.scalar_type() == dtype && t.is_contiguous(), argument,
                  ": expected the dense vectors that the forward operator returned");
}

inline void check_all_or_none(std::initializer_list<const OptionalTensor*> tensors, const char* arguments) {
  for (const OptionalTensor* t : tensors) {
    STD_TORCH_CHECK(t->has_value() == (*tensors.begin())->has_value(), arguments,
                    ": expected all or none, got some of them");
  }
}

// The names of a BatchNorm's tensors.
struct BatchNormNames {
  const char *gamma, *beta, *mean, *var, *statistics;
};
inline constexpr BatchNormNames kBatchNorm{"gamma", "beta", "mean", "var", "mean, var"};
inline constexpr BatchNormNames kBatchNorm1{"gamma1", "beta1", "mean1", "var1", "mean1, var1"};
inline constexpr BatchNormNames kBatchNorm2{"gamma2", "beta2", "mean2", "var2", "mean2, var2"};

inline void check_batch_norm(const Tensor& gamma, const Tensor& beta, const OptionalTensor& mean,
                             const OptionalTensor& var, int64_t channels, const Tensor& like,
                             const BatchNormNames& names) {
  check_values(gamma, channels, like, names.gamma);
  check_values(beta, channels, like, names.beta);
  check_all_or_none({&mean, &var}, names.statistics);
  if (mean) check_values(*mean, channels, like, names.mean);
  if (var) check_values(*var, channels, like, names.var);
}

inline void check_squeeze_excite(const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
                                 int64_t channels, const Tensor& like) {
  STD_TORCH_CHECK(w1.defined() && w1.dim() >= 2 && w1.size(0) >= 1 && w1.size(1) == channels, "w1: expected shape (S, ",
                  channels, ")");
  const int64_t squeezed = w1.size(0);
  STD_TORCH_CHECK(w2.defined() && w2.dim() >= 2 && w2.size(0) == channels && w2.size(1) == squeezed,
                  "w2: expected shape (", channels, ", ", squeezed, ")");
  check_values(w1, squeezed * channels, like, "w1");
  check_values(b1, squeezed, like, "b1");
  check_values(w2, squeezed * channels, like, "w2");
  check_values(b2, channels, like, "b2");
}

inline Activation activation_of(int64_t code) {
  STD_TORCH_CHECK(code >= 0 && code < kActivations, "activation: expected a code from 0 to ", kActivations - 1,
                  ", got ", code);
  return Activation(code);
}

inline Activation gate_of(int64_t code) {
  constexpr auto sigmoid = int64_t(Activation::sigmoid), hardsigmoid = int64_t(Activation::hardsigmoid);
  STD_TORCH_CHECK(code == sigmoid || code == hardsigmoid, "gate: expected the code ", sigmoid, " or ", hardsigmoid,
                  ", got ", code);
  return Activation(code);
}

// Vectors that update_running_stats_ writes: with two channels in one place the second would start from the first's.
inline void check_running(const Tensor& running, int64_t channels, const Tensor& like, const char* argument) {
  check_values(running, channels, like, argument);
  for (int64_t d = 0; d < running.dim(); ++d) {
    STD_TORCH_CHECK(running.size(d) <= 1 || running.stride(d) != 0, argument,
                    ": expected memory of its own for every channel, got an expanded tensor");
  }
}

}  // namespace effnet_kernels
