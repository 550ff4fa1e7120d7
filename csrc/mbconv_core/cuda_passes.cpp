// The sequence of passes behind mbconv_core and depthwise_conv_bn_act on a GPU; F1 … B3 are the rows of docs/design.md's
// table. Everything is queued on the current stream; nothing waits for the device.
#include "common/cuda/call.h"
#include "depthwise_conv_bn_act/cuda.h"
#include "mbconv_core/passes.h"
#include "squeeze_excite/cuda.h"

namespace effnet_kernels {
namespace cuda {
namespace {

// The batch statistics of a launch's parts.
void merge_statistics(Call& call, const Moments& moments, int64_t parts, int64_t channels, Tensor& mean, Tensor& var) {
  check(launch_merge_statistics({parts, channels, moments, static_cast<float*>(call.write(mean, "mean")),
                                 static_cast<float*>(call.write(var, "var"))},
                                call.stream),
        "merge_statistics");
}

// BN1 as the kernels take it, of the core's statistics or of the batch's.
BatchNorm prologue(Call& call, const MBConvCore& core, const OptionalTensor& mean, const OptionalTensor& var) {
  if (!core.bn1) return Call::no_batch_norm();
  const BatchNormTensors& bn = *core.bn1;
  return call.batch_norm(bn.gamma, bn.beta, mean ? *mean : *bn.mean, var ? *var : *bn.var, bn.eps);
}

// What the forward and the backward depthwise kernel both take.
template <class Params>
Params depthwise_params(Call& call, const MBConvCore& core, const DepthwisePlan& plan, const BatchNorm& bn1) {
  Params p{};
  p.dtype = call.dtype;
  p.plan = plan;
  p.activation = core.activation;
  p.w = call.parameter(core.w, "w");
  p.prologue = core.bn1.has_value();
  p.bn1 = bn1;
  p.x = call.read(core.u, "u");
  return p;
}

ExciteParams excite_params(Call& call, const MBConvCore& core, const DepthwiseShape& shape) {
  ExciteParams p{};
  p.images = shape.images;
  p.channels = shape.channels;
  p.squeezed = core.se->w1.size(0);
  p.pixels = shape.out_pixels();
  p.activation = core.activation;
  p.gate = core.gate;
  p.w1 = call.parameter(core.se->w1, "w1");
  p.b1 = call.parameter(core.se->b1, "b1");
  p.w2 = call.parameter(core.se->w2, "w2");
  p.b2 = call.parameter(core.se->b2, "b2");
  return p;
}

float* output(Call& call, const Tensor& t, const char* name) { return static_cast<float*>(call.write(t, name)); }
const float* input(Call& call, const Tensor& t, const char* name) {
  return static_cast<const float*>(call.read(t, name));
}

Tensor empty_output(const MBConvCore& core, const DepthwiseShape& shape, Layout layout) {
  return empty_activations(core.u, {shape.images, shape.channels, shape.out_height, shape.out_width}, layout);
}

}  // namespace
}  // namespace cuda

using namespace cuda;

MBConvForward CudaPasses::forward(const MBConvCore& core) {
  Call call(core.u);
  const DepthwiseShape shape = depthwise_shape(core);
  const int64_t channels = shape.channels;
  MBConvForward r = MBConvForward::none();
  r.out = empty_output(core, shape, call.layout);
  r.y = empty_output(core, shape, call.layout);
  const bool aligned = call.aligned({&core.u, &r.y, &r.out});

  // F1
  const bool batch1 = core.bn1 && !core.bn1->mean;
  if (batch1) {
    const StreamPlan plan = call.stream_plan(core.u, aligned);
    const Moments moments = call.moments(plan.parts(), channels);
    check(launch_statistics({call.dtype, plan, call.read(core.u, "u"), moments}, call.stream), "statistics");
    r.mean1 = empty_vector(core.u, {channels});
    r.var1 = empty_vector(core.u, {channels});
    merge_statistics(call, moments, plan.parts(), channels, r.mean1, r.var1);
  }
  const BatchNorm bn1 = batch1 ? prologue(call, core, r.mean1, r.var1) : prologue(call, core, {}, {});

  // F2
  const bool batch2 = !core.bn2.mean;
  const DepthwisePlan plan = depthwise_plan(call.device, call.layout, call.vector, shape, false, aligned);
  auto depthwise = depthwise_params<DepthwiseForwardParams>(call, core, plan, bn1);
  depthwise.out = call.write(r.y, "y");
  if (batch2) depthwise.moments = call.moments(plan.parts(), channels);
  check(launch_depthwise_forward(depthwise, call.stream), "depthwise_forward");
  if (batch2) {
    r.mean2 = empty_vector(core.u, {channels});
    r.var2 = empty_vector(core.u, {channels});
    merge_statistics(call, depthwise.moments, plan.parts(), channels, r.mean2, r.var2);
  }
  const BatchNorm bn2 = call.batch_norm(core.bn2.gamma, core.bn2.beta, batch2 ? r.mean2 : *core.bn2.mean,
                                        batch2 ? r.var2 : *core.bn2.var, core.bn2.eps);

  // F3: the pooled z, and A3 and A5 for the backward pass; then SE's layers.
  const StreamPlan out_plan = call.stream_plan(r.y, aligned);
  Parameter scale = Call::none();
  if (core.se) {
    const int64_t size = out_plan.parts() * channels;
    ExciteParams excite = excite_params(call, core, shape);
    r.pooled = empty_vector(core.u, {shape.images, channels});
    r.hidden = empty_vector(core.u, {shape.images, excite.squeezed});
    r.logits = empty_vector(core.u, {shape.images, channels});
    r.a3 = empty_vector(core.u, {shape.images, channels});
    r.a5 = empty_vector(core.u, {shape.images, channels});
    excite.a3 = output(call, r.a3, "a3");
    excite.a5 = output(call, r.a5, "a5");
    // An image in one chunk has its sums in one part.
    const bool whole = out_plan.chunks == 1;
    const PoolParams pool{call.dtype,
                          out_plan,
                          core.activation,
                          bn2,
                          call.read(r.y, "y"),
                          call.floats(size, "z sums"),
                          whole ? excite.a3 : call.floats(size, "a3 sums"),
                          whole ? excite.a5 : call.floats(size, "a5 sums")};
    check(launch_pool(pool, call.stream), "pool");
    excite.chunks = out_plan.chunks;
    excite.z = pool.z;
    excite.a3_parts = whole ? nullptr : pool.a3;
    excite.a5_parts = whole ? nullptr : pool.a5;
    excite.pooled = output(call, r.pooled, "pooled");
    excite.hidden = output(call, r.hidden, "hidden");
    excite.logits = output(call, r.logits, "logits");
    excite.scale = call.floats(shape.images * channels, "scale");
    check(launch_excite(excite, call.stream), "excite");
    scale = {excite.scale, DType::float32};
  }

  // F4
  check(launch_normalize({call.dtype, out_plan, core.activation, bn2, call.read(r.y, "y"), scale, false, nullptr,
                          call.write(r.out, "out")},
                         call.stream),
        "normalize");
  return r;
}

MBConvInference CudaPasses::inference(const MBConvCore& core, bool scaled) {
  Call call(core.u);
  const DepthwiseShape shape = depthwise_shape(core);
  Tensor out = empty_output(core, shape, call.layout);
  const bool aligned = call.aligned({&core.u, &out});
  const DepthwisePlan plan = depthwise_plan(call.device, call.layout, call.vector, shape, false, aligned);
  auto depthwise = depthwise_params<DepthwiseForwardParams>(call, core, plan, prologue(call, core, {}, {}));
  depthwise.inference = true;
  depthwise.bn2 = call.batch_norm(core.bn2.gamma, core.bn2.beta, *core.bn2.mean, *core.bn2.var, core.bn2.eps);
  depthwise.out = call.write(out, "out");
  if (core.se) depthwise.z_sum = call.floats(shape.images * plan.pieces() * shape.channels, "z sums");
  check(launch_depthwise_forward(depthwise, call.stream), "depthwise_forward");
  if (!core.se) return {out, Tensor()};

  ExciteParams excite = excite_params(call, core, shape);
  excite.chunks = plan.pieces();
  excite.z = depthwise.z_sum;
  excite.pooled = call.floats(shape.images * shape.channels, "pooled");
  excite.hidden = call.floats(shape.images * excite.squeezed, "hidden");
  excite.logits = call.floats(shape.images * shape.channels, "logits");
  excite.scale = call.floats(shape.images * shape.channels, "scale");
  check(launch_excite(excite, call.stream), "excite");
  check(launch_normalize({call.dtype,
                          call.stream_plan(out, aligned),
                          Activation::identity,
                          Call::no_batch_norm(),
                          depthwise.out,
                          {excite.scale, DType::float32},
                          false,
                          nullptr,
                          depthwise.out},
                         call.stream),
        "normalize");
  return {out, Tensor()};
}

MBConvBackward CudaPasses::backward(const MBConvCore& core, const Tensor& grad, const Tensor& y,
                                    const std::optional<ExciteSaved>& saved, bool training1, bool training2) {
  Call call(core.u);
  const DepthwiseShape shape = depthwise_shape(core);
  check_depthwise_gradient(grad, y, core, shape, call.layout);
  const int64_t channels = shape.channels, rows = shape.images * channels;
  MBConvBackward r = MBConvBackward::none();
  r.du = torch::stable::empty_like(core.u);
  r.dw = Call::empty_gradient(core.w);
  r.dgamma2 = Call::empty_gradient(core.bn2.gamma);
  r.dbeta2 = Call::empty_gradient(core.bn2.beta);
  const bool aligned = call.aligned({&core.u, &y, &grad, &r.du});
  const BatchNorm bn1 = prologue(call, core, {}, {});
  const BatchNorm bn2 = call.batch_norm(core.bn2.gamma, core.bn2.beta, *core.bn2.mean, *core.bn2.var, core.bn2.eps);

  // B1: A1, A2 and A4; from them SE's gradients and BN2's.
  const StreamPlan out_plan = call.stream_plan(y, aligned);
  const int64_t size = out_plan.parts() * channels;
  BackwardSumsParams sums{call.dtype,
                          out_plan,
                          core.activation,
                          bn2,
                          call.read(grad, "grad"),
                          call.read(y, "y"),
                          core.se ? call.floats(size, "a1 sums") : nullptr,
                          call.floats(size, "a2 sums"),
                          call.floats(size, "a4 sums")};
  check(launch_backward_sums(sums, call.stream), "backward_sums");
  Gradient gradient{Call::none(), false, nullptr, nullptr, nullptr};
  if (core.se) {
    const ExciteParams forward = excite_params(call, core, shape);
    r.dw1 = Call::empty_gradient(core.se->w1);
    r.db1 = Call::empty_gradient(core.se->b1);
    r.dw2 = Call::empty_gradient(core.se->w2);
    r.db2 = Call::empty_gradient(core.se->b2);
    const ExciteBackwardParams excite{shape.images,
                                      channels,
                                      forward.squeezed,
                                      out_plan.chunks,
                                      core.activation,
                                      core.gate,
                                      forward.w1,
                                      forward.w2,
                                      input(call, saved->pooled, "pooled"),
                                      input(call, saved->hidden, "hidden"),
                                      input(call, saved->logits, "logits"),
                                      sums.gz,
                                      call.floats(rows, "scale"),
                                      call.floats(rows, "dlogits"),
                                      call.floats(rows, "dpooled"),
                                      call.floats(shape.images * forward.squeezed, "activated"),
                                      call.floats(shape.images * forward.squeezed, "dhidden"),
                                      call.gradient(r.dw1, "dw1"),
                                      call.gradient(r.db1, "db1"),
                                      call.gradient(r.dw2, "dw2"),
                                      call.gradient(r.db2, "db2")};
    check(launch_excite_backward(excite, call.stream), "excite_backward");
    gradient.factor = {excite.scale, DType::float32};
    gradient.offset = excite.dpooled;
    r.dw1 = Call::as_parameter(r.dw1, core.se->w1);
    r.dw2 = Call::as_parameter(r.dw2, core.se->w2);
  }
  BatchNormGradientParams bn2_gradient{shape.images,
                                       out_plan.chunks,
                                       channels,
                                       shape.out_pixels(),
                                       training2,
                                       sums.slope,
                                       sums.slope_x,
                                       gradient.factor,
                                       false,
                                       gradient.offset,
                                       core.se ? input(call, saved->a3, "a3") : nullptr,
                                       core.se ? input(call, saved->a5, "a5") : nullptr,
                                       call.gradient(r.dgamma2, "dgamma2"),
                                       call.gradient(r.dbeta2, "dbeta2"),
                                       call.floats(channels, "mean dv2"),
                                       call.floats(channels, "mean dv2 x")};
  check(launch_batch_norm_gradient(bn2_gradient, call.stream), "batch_norm_gradient");
  gradient.mean_dv = bn2_gradient.mean_dv;
  gradient.mean_dv_x = bn2_gradient.mean_dv_x;

  // B2: dv1 (or du), dW and BN1's sums.
  const DepthwisePlan plan = depthwise_plan(call.device, call.layout, call.vector, shape, true, aligned);
  auto depthwise = depthwise_params<DepthwiseBackwardParams>(call, core, plan, bn1);
  const int64_t partial_rows = shape.taps() + (core.bn1 ? 2 : 0);
  depthwise.constant1 = core.bn1 && !training1;
  depthwise.bn2 = bn2;
  depthwise.gradient = gradient;
  depthwise.grad = sums.grad;
  depthwise.y = sums.x;
  depthwise.dx = call.write(r.du, "du");
  depthwise.partial = call.floats(plan.parts() * partial_rows * channels, "dw parts");
  check(launch_depthwise_backward(depthwise, call.stream), "depthwise_backward");
  DepthwiseSumParams sum{};
  sum.parts = plan.parts();
  sum.channels = channels;
  sum.count = shape.images * shape.pixels();
  sum.taps = shape.taps();
  sum.prologue = core.bn1.has_value();
  sum.training1 = training1;
  sum.partial = depthwise.partial;
  sum.dw = call.gradient(r.dw, "dw");
  if (core.bn1) {
    r.dgamma1 = Call::empty_gradient(core.bn1->gamma);
    r.dbeta1 = Call::empty_gradient(core.bn1->beta);
    sum.dgamma1 = call.gradient(r.dgamma1, "dgamma1");
    sum.dbeta1 = call.gradient(r.dbeta1, "dbeta1");
    sum.mean_dv = call.floats(channels, "mean dv1");
    sum.mean_dv_x = call.floats(channels, "mean dv1 x");
  }
  check(launch_depthwise_sum(sum, call.stream), "depthwise_sum");
  r.dw = Call::as_parameter(r.dw, core.w);
  if (!core.bn1 || !training1) return r;

  // B3: du from dv1, in place.
  check(launch_input_gradient({call.dtype,
                               call.stream_plan(core.u, aligned),
                               Activation::identity,
                               bn1,
                               {Call::none(), false, nullptr, sum.mean_dv, sum.mean_dv_x},
                               depthwise.dx,
                               depthwise.x,
                               depthwise.dx},
                              call.stream),
        "input_gradient");
  return r;
}

}  // namespace effnet_kernels
