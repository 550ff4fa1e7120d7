// pointwise_conv on CPU: a 1×1 convolution of channels_last activations, registered.
#include <torch/csrc/stable/library.h>

#include "common/cpu/allocate.h"
#include "pointwise_conv/checks.h"
#include "pointwise_conv/cpu.h"
#include "pointwise_conv/weight.h"

namespace effnet_kernels::cpu {
namespace {

RowChunks chunks_of(const Tensor& x, int64_t in_channels, int64_t out_channels) {
  return RowChunks::make(x.size(0), x.size(2) * x.size(3), in_channels + out_channels, in_channels * out_channels);
}

void check(const Tensor& x, const Tensor& w) {
  check_activations(x, "x");
  check_channels_last(x, x, "x");
  check_pointwise_weight(w, x.size(1), x, "w");
}

Tensor forward(const Tensor& x, const Tensor& w) {
  check(x, w);
  Tensor out = allocate_activations(x, {x.size(0), w.size(0), x.size(2), x.size(3)}, Layout::nhwc);
  dispatch_accumulator(dtype_of(x), [&](auto a) {
    using A = typename decltype(a)::type;
    const Buffer<A> weight = PointwiseWeight<A>(w).packed_transposed();
    pointwise_forward({dtype_of(x), chunks_of(x, x.size(1), w.size(0)), x.size(1), w.size(0), x.const_data_ptr(),
                       weight.data(), out.mutable_data_ptr(), nullptr, nullptr});
  });
  return out;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& w, bool needs_dx,
                                    bool needs_dw) {
  check(x, w);
  check_channels_last(grad, x, "grad");
  STD_TORCH_CHECK(
      grad.size(0) == x.size(0) && grad.size(1) == w.size(0) && grad.size(2) == x.size(2) && grad.size(3) == x.size(3),
      "grad: expected the output's shape");
  const int64_t k = x.size(1), n = w.size(0);
  Tensor dx = needs_dx ? allocate_like(x) : empty_vector(x, {0});
  Tensor dw = empty_vector(x, {0});
  dispatch_accumulator(dtype_of(x), [&](auto a) {
    using A = typename decltype(a)::type;
    const RowChunks chunks = chunks_of(x, k, n);
    // What the products read, as it lies.
    const bool few = chunks.few && is_of<A>(grad) && is_of<A>(x);
    const PointwiseWeight<A> values(w);
    const auto weight = needs_dx ? values.for_gradient(few) : GradientWeight<A>{Buffer<A>(0), nullptr};
    Buffer<A> dweight = weight_gradient_sums<A>(chunks, needs_dw && !few, n * padded_channels(k));
    if (needs_dx || !few) {
      pointwise_backward({dtype_of(x), chunks, k, n, grad.const_data_ptr(), x.const_data_ptr(), weight.data,
                          weight.packed(), needs_dx ? dx.mutable_data_ptr() : nullptr,
                          needs_dw && !few ? dweight.data() : nullptr});
    }
    if (needs_dw && few) {
      dw = outer_gradient(chunks.rows(), static_cast<const A*>(grad.const_data_ptr()), n, n,
                          static_cast<const A*>(x.const_data_ptr()), k, k, w);
    } else if (needs_dw) {
      dw = summed_gradient(dweight, n, k, w);
    }
  });
  return {dx, dw};
}

}  // namespace
}  // namespace effnet_kernels::cpu

STABLE_TORCH_LIBRARY_IMPL(effnet_kernels, CPU, m) {
  m.impl("pointwise_conv", TORCH_BOX(&effnet_kernels::cpu::forward));
  m.impl("pointwise_conv_backward", TORCH_BOX(&effnet_kernels::cpu::backward));
}
