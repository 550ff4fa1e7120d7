// squeeze_excite on CUDA: x · gate(W2 act(W1 mean(x) + b1) + b2). Forward: one pass to pool, the two small layers, one
// pass to scale. Backward: one pass over (grad, x) for dscale, the layers, one pass for dx.
#include "squeeze_excite/cuda.h"

#include <torch/csrc/stable/library.h>

#include "batch_norm_act/cuda.h"
#include "common/checks.h"
#include "common/cuda/call.h"

namespace effnet_kernels::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& w1, const Tensor& b1,
                                                   const Tensor& w2, const Tensor& b2, int64_t activation,
                                                   int64_t gate) {
  check_activations(x, "x");
  check_squeeze_excite(w1, b1, w2, b2, x.size(1), x);
  const Activation act = activation_of(activation), gates = gate_of(gate);
  Call call(x);
  Tensor out = torch::stable::empty_like(x);
  const StreamPlan plan = call.stream_plan(x, call.aligned({&x, &out}));
  const int64_t images = x.size(0), channels = x.size(1), squeezed = w1.size(0);
  Tensor pooled = empty_vector(x, {images, channels}), hidden = empty_vector(x, {images, squeezed});
  Tensor logits = empty_vector(x, {images, channels});
  const auto floats = [&](const Tensor& t, const char* name) { return static_cast<float*>(call.write(t, name)); };
  const PoolParams pool{call.dtype,
                        plan,
                        Activation::identity,
                        Call::no_batch_norm(),
                        call.read(x, "x"),
                        call.floats(plan.parts() * channels, "z sums"),
                        nullptr,
                        nullptr};
  check(launch_pool(pool, call.stream), "pool");
  const ExciteParams excite{images,
                            channels,
                            squeezed,
                            plan.chunks,
                            plan.pixels,
                            act,
                            gates,
                            call.parameter(w1, "w1"),
                            call.parameter(b1, "b1"),
                            call.parameter(w2, "w2"),
                            call.parameter(b2, "b2"),
                            pool.z,
                            nullptr,
                            nullptr,
                            floats(pooled, "pooled"),
                            floats(hidden, "hidden"),
                            floats(logits, "logits"),
                            nullptr,
                            nullptr,
                            call.floats(images * channels, "scale")};
  check(launch_excite(excite, call.stream), "excite");
  check(launch_normalize({call.dtype,
                          plan,
                          Activation::identity,
                          Call::no_batch_norm(),
                          pool.x,
                          {excite.scale, DType::float32},
                          false,
                          nullptr,
                          call.write(out, "out")},
                         call.stream),
        "normalize");
  return {out, pooled, hidden, logits};
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
  Call call(x);
  check_dense_like(grad, x, call.layout, "grad");
  Tensor dx = torch::stable::empty_like(x);
  const StreamPlan plan = call.stream_plan(x, call.aligned({&x, &grad, &dx}));
  const int64_t images = x.size(0), channels = x.size(1), squeezed = w1.size(0), rows = images * channels;
  Tensor dw1 = Call::empty_gradient(w1), db1 = Call::empty_gradient(b1);
  Tensor dw2 = Call::empty_gradient(w2), db2 = Call::empty_gradient(b2);
  const auto floats = [&](const Tensor& t, const char* name) { return static_cast<const float*>(call.read(t, name)); };
  const int64_t size = plan.parts() * channels;
  const BackwardSumsParams sums{call.dtype,
                                plan,
                                Activation::identity,
                                Call::no_batch_norm(),
                                call.read(grad, "grad"),
                                call.read(x, "x"),
                                call.floats(size, "a1 sums"),
                                nullptr,
                                nullptr};
  check(launch_backward_sums(sums, call.stream), "backward_sums");
  const ExciteBackwardParams excite{images,
                                    channels,
                                    squeezed,
                                    plan.chunks,
                                    act,
                                    gates,
                                    call.parameter(w1, "w1"),
                                    call.parameter(w2, "w2"),
                                    floats(pooled, "pooled"),
                                    floats(hidden, "hidden"),
                                    floats(logits, "logits"),
                                    sums.gz,
                                    call.floats(rows, "scale"),
                                    call.floats(rows, "dlogits"),
                                    call.floats(rows, "dpooled"),
                                    call.floats(images * squeezed, "activated"),
                                    call.floats(images * squeezed, "dhidden"),
                                    call.gradient(dw1, "dw1"),
                                    call.gradient(db1, "db1"),
                                    call.gradient(dw2, "dw2"),
                                    call.gradient(db2, "db2")};
  check(launch_excite_backward(excite, call.stream), "excite_backward");
  check(launch_input_gradient({call.dtype,
                               plan,
                               Activation::identity,
                               Call::no_batch_norm(),
                               {{excite.scale, DType::float32}, false, excite.dpooled, nullptr, nullptr},
                               sums.grad,
                               nullptr,
                               call.write(dx, "dx")},
                              call.stream),
        "input_gradient");
  return {dx, Call::as_parameter(dw1, w1), Call::as_parameter(db1, b1), Call::as_parameter(dw2, w2),
          Call::as_parameter(db2, b2)};
}

}  // namespace
}  // namespace effnet_kernels::cuda

EK_CUDA_LIBRARY(m) {
  m.impl("squeeze_excite", TORCH_BOX(&effnet_kernels::cuda::forward));
  m.impl("squeeze_excite_backward", TORCH_BOX(&effnet_kernels::cuda::backward));
}
