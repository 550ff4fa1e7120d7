// squeeze_excite on CPU: x · gate(W2 act(W1 mean(x) + b1) + b2). Forward: one pass to pool, the two small layers, one
// pass to scale. Backward: one pass over (grad, x) for dscale, the layers, one pass for dx.
#include "squeeze_excite/cpu.h"

#include <torch/csrc/stable/library.h>

#include "common/checks.h"
#include "common/cpu/allocate.h"

namespace effnet_kernels::cpu {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& w1, const Tensor& b1,
                                                   const Tensor& w2, const Tensor& b2, int64_t activation,
                                                   int64_t gate) {
  check_activations(x, "x");
  check_squeeze_excite(w1, b1, w2, b2, x.size(1), x);
  const Activation act = activation_of(activation), gates = gate_of(gate);
  const Extent extent = extent_of(x);
  return dispatch_accumulator(extent.dtype, [&](auto type) -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
    using A = typename decltype(type)::type;
    const auto none = identity_batch_norm<A>(extent.channels);
    auto se = Excite<A>::make(w1, b1, w2, b2, extent.images, extent.channels, act, gates);
    Buffer<A> sums = padded_rows<A>(extent.parts(), extent.channels);
    forward_sums({extent, Activation::identity, x.const_data_ptr(), none.affine(), sums.data(), nullptr, nullptr});
    const auto saved = se.run(x, sums, extent.chunks(), extent.pixels);
    Tensor out = allocate_like(x);
    normalize({extent, Activation::identity, x.const_data_ptr(), none.affine(), se.scale.data(), nullptr,
               out.mutable_data_ptr()});
    return {out, saved.pooled, saved.hidden, saved.logits};
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& w1,
                                                            const Tensor& b1, const Tensor& w2, const Tensor& b2,
                                                            const Tensor& pooled, const Tensor& hidden,
                                                            const Tensor& logits, int64_t activation, int64_t gate) {
  check_activations(x, "x");
  check_squeeze_excite(w1, b1, w2, b2, x.size(1), x);
  check_saved(pooled, x.size(0) * x.size(1), x, "pooled");
  check_saved(hidden, x.size(0) * w1.size(0), x, "hidden");
  check_saved(logits, x.size(0) * x.size(1), x, "logits");
  const Activation act = activation_of(activation), gates = gate_of(gate);
  const Extent extent = extent_of(x);
  check_dense_like(grad, x, extent.layout, "grad");
  return dispatch_accumulator(extent.dtype, [&](auto type) -> std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> {
    using A = typename decltype(type)::type;
    const auto none = identity_batch_norm<A>(extent.channels);
    auto se = Excite<A>::make(w1, b1, w2, b2, extent.images, extent.channels, act, gates);
    se.restore(pooled, hidden, logits);
    Buffer<A> sums = padded_rows<A>(extent.parts(), extent.channels);
    backward_sums({extent, Activation::identity, grad.const_data_ptr(), x.const_data_ptr(), none.affine(), sums.data(),
                   nullptr, nullptr});
    const Buffer<A> dscale = sum_rows(std::move(sums), extent.images, extent.chunks(), extent.row());
    auto gradient = ExciteGradient<A>::from(se, dscale.data(), w1, b1, w2, b2);
    for (int64_t i = 0; i < gradient.dpooled.size(); ++i) gradient.dpooled[i] /= A(extent.pixels);
    const Buffer<A> zero(extent.row());
    Tensor dx = allocate_like(x);
    input_gradient({extent,
                    Activation::identity,
                    grad.const_data_ptr(),
                    nullptr,
                    none.affine(),
                    {se.scale.data(), gradient.dpooled.data(), zero.data(), zero.data()},
                    dx.mutable_data_ptr()});
    return {dx, gradient.dw1, gradient.db1, gradient.dw2, gradient.db2};
  });
}

}  // namespace
}  // namespace effnet_kernels::cpu

STABLE_TORCH_LIBRARY_IMPL(effnet_kernels, CPU, m) {
  m.impl("squeeze_excite", TORCH_BOX(&effnet_kernels::cpu::forward));
  m.impl("squeeze_excite_backward", TORCH_BOX(&effnet_kernels::cpu::backward));
}
