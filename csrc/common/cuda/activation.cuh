// The activation maths of common/activation_math.h for a float in a register.
#pragma once

#include "common/cuda/vec.cuh"

namespace effnet_kernels::cuda {

struct Scalar {
  float value;
  static EK_DEVICE Scalar broadcast(double v) { return {float(v)}; }
};
EK_DEVICE Scalar operator+(Scalar a, Scalar b) { return {a.value + b.value}; }
EK_DEVICE Scalar operator-(Scalar a, Scalar b) { return {a.value - b.value}; }
EK_DEVICE Scalar operator*(Scalar a, Scalar b) { return {a.value * b.value}; }
// Good to 2 ulp; the quotients here are all 1 / (1 + exp(x)).
EK_DEVICE Scalar operator/(Scalar a, Scalar b) { return {__fdividef(a.value, b.value)}; }
EK_DEVICE Scalar exp(Scalar a) { return {__expf(a.value)}; }
EK_DEVICE Scalar sigmoid(Scalar a) {
  const Scalar one = Scalar::broadcast(1), zero = Scalar::broadcast(0);
  return one / (one + exp(zero - a));
}
EK_DEVICE Scalar select_le(Scalar a, Scalar b, Scalar x, Scalar y) { return a.value <= b.value ? x : y; }

#define EK_INLINE EK_DEVICE
#include "common/activation_math.h"
#undef EK_INLINE

// The activation is a run-time value, the same for a whole launch: one branch per vector instead of a kernel for each.
template <int N>
EK_DEVICE void activate_all(Activation activation, float (&v)[N]) {
  dispatch_batch_norm_activation(activation, [&](auto act) {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = activate<decltype(act)::value>(Scalar{v[i]}).value;
  });
}
template <int N>
EK_DEVICE void derive_all(Activation activation, float (&v)[N], float (&derivative)[N]) {
  dispatch_batch_norm_activation(activation, [&](auto act) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const auto result = activate_with_derivative<decltype(act)::value>(Scalar{v[i]});
      v[i] = result.value.value;
      derivative[i] = result.derivative.value;
    }
  });
}

}  // namespace effnet_kernels::cuda
