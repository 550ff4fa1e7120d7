// mbconv_core and depthwise_conv_bn_act on CPU as sequences of the steps of cpu_steps.h.
#include "mbconv_core/cpu_steps.h"

namespace effnet_kernels::cpu {
namespace {

template <class A>
MBConvForward forward(const MBConvCore& core) {
  const Geometry g = Geometry::of(core);
  MBConvForward result = MBConvForward::none();
  result.out = g.empty_output(core.u);
  result.y = g.empty_output(core.u);
  const BatchNormValues<A> bn1 = prologue<A>(core, g.in, result);
  const BatchNormValues<A> bn2 = convolve(core, g, bn1, result);
  const std::optional<Excite<A>> se = pool_and_excite(core, g, bn2, result);
  // F4
  normalize({g.out, core.activation, result.y.const_data_ptr(), bn2.affine(), se ? se->scale.data() : nullptr, nullptr,
             result.out.mutable_data_ptr()});
  return result;
}

template <class A>
MBConvInference inference(const MBConvCore& core, bool scaled) {
  const Geometry g = Geometry::of(core);
  const int64_t channels = g.out.channels;
  MBConvForward unused = MBConvForward::none();
  const BatchNormValues<A> bn1 = prologue<A>(core, g.in, unused);
  const auto bn2 =
      batch_norm_values<A>(core.bn2.gamma, core.bn2.beta, given_statistics<A>(*core.bn2.mean, *core.bn2.var, channels),
                           channels, core.bn2.eps);
  const DepthwiseUnits units = forward_units(g.shape, g.in.layout);
  Buffer<A> sums(core.se ? g.out.images * units.strips * g.out.row() : 0);
  const Buffer<A> weight = read_depthwise_weight<A>(core.w, channels, g.shape.taps());
  Tensor out = g.empty_output(core.u);
  auto p = depthwise_params<DepthwiseForwardParams>(core, g, units, weight, bn1);
  p.inference = true;
  p.affine2 = bn2.affine();
  p.out = out.mutable_data_ptr();
  p.z_sum = core.se ? sums.data() : nullptr;
  depthwise_forward(p);
  if (!core.se) return {out, Tensor()};
  auto se = make_excite<A>(core, g.out);
  se.run(core.u, sums, units.strips, g.out.pixels);
  if (!scaled) return {out, vector_tensor(se.scale.data(), core.u, g.out.images, channels)};
  const auto none = identity_batch_norm<A>(channels);
  normalize({g.out, Activation::identity, out.const_data_ptr(), none.affine(), se.scale.data(), nullptr,
             out.mutable_data_ptr()});
  return {out, Tensor()};
}

template <class A>
MBConvBackward backward(const MBConvCore& core, const Tensor& grad, const Tensor& y,
                        const std::optional<ExciteSaved>& saved, bool training1, bool training2) {
  const Geometry g = Geometry::of(core);
  MBConvBackward result = MBConvBackward::none();
  const auto bn1 = core.bn1 ? saved_batch_norm<A>(*core.bn1, g.in.channels) : identity_batch_norm<A>(g.in.channels);
  Middle<A> middle = saved_middle<A>(core, g, saved);
  // B1
  const auto sums = image_backward_sums<A>(g.out, core.activation, grad, y, middle.bn2.affine(), core.se.has_value());
  const auto dbn1 = backward_middle(core, g, bn1, middle, sums, grad, y, saved, training1, training2, result);
  if (!core.bn1) return result;
  // B3: du from dv1, in place.
  input_gradient({g.in,
                  Activation::identity,
                  result.du.const_data_ptr(),
                  core.u.const_data_ptr(),
                  bn1.affine(),
                  {nullptr, nullptr, dbn1.mean_dv.data(), dbn1.mean_dv_x.data()},
                  result.du.mutable_data_ptr()});
  return result;
}

}  // namespace
}  // namespace effnet_kernels::cpu

namespace effnet_kernels {

MBConvForward CpuPasses::forward(const MBConvCore& core) {
  return dispatch_accumulator(dtype_of(core.u), [&](auto a) { return cpu::forward<typename decltype(a)::type>(core); });
}

MBConvInference CpuPasses::inference(const MBConvCore& core, bool scaled) {
  return dispatch_accumulator(dtype_of(core.u),
                              [&](auto a) { return cpu::inference<typename decltype(a)::type>(core, scaled); });
}

MBConvBackward CpuPasses::backward(const MBConvCore& core, const Tensor& grad, const Tensor& y,
                                   const std::optional<ExciteSaved>& saved, bool training1, bool training2) {
  check_depthwise_gradient(grad, y, core, depthwise_shape(core), layout_of(core.u));
  return dispatch_accumulator(dtype_of(core.u), [&](auto a) {
    return cpu::backward<typename decltype(a)::type>(core, grad, y, saved, training1, training2);
  });
}

}  // namespace effnet_kernels
