// The sequence of passes behind mbconv_core and depthwise_conv_bn_act; F1 … B3 are the rows of docs/design.md's table.
#include "depthwise_conv_bn_act/cpu.h"
#include "mbconv_core/passes.h"
#include "squeeze_excite/cpu.h"

namespace effnet_kernels::cpu {
namespace {

// Shapes of one call: u on the way in, y and out on the way out.
struct Geometry {
  DepthwiseShape shape;
  Extent in, out;

  static Geometry of(const MBConvCore& core) {
    const Layout layout = layout_of(core.u);
    const DepthwiseShape shape = depthwise_shape(core);
    const DType dtype = dtype_of(core.u);
    return {shape,
            {dtype, layout, shape.images, shape.channels, shape.pixels()},
            {dtype, layout, shape.images, shape.channels, shape.out_pixels()}};
  }

  Tensor empty_output(const Tensor& u) const {
    return empty_activations(u, {shape.images, shape.channels, shape.out_height, shape.out_width}, out.layout);
  }
};

template <class A>
Tensor statistic_tensor(const Buffer<A>& values, const Tensor& like, int64_t size) {
  Tensor t = empty_vector(like, {size});
  write_rows(values.data(), 1, size, t);
  return t;
}

template <class A>
Excite<A> make_excite(const MBConvCore& core, const Extent& extent) {
  return Excite<A>::make(core.se->w1, core.se->b1, core.se->w2, core.se->b2, extent.images, extent.channels,
                         core.activation, core.gate);
}

// What the forward and the backward depthwise kernel both take.
template <class Params, class A>
Params depthwise_params(const MBConvCore& core, const Geometry& g, const DepthwiseUnits& units, const Buffer<A>& weight,
                        const BatchNormValues<A>& bn1) {
  Params p{};
  p.dtype = g.in.dtype;
  p.layout = g.in.layout;
  p.shape = g.shape;
  p.units = units;
  p.activation = core.activation;
  p.x = core.u.const_data_ptr();
  p.weight = weight.data();
  p.prologue = core.bn1.has_value();
  p.affine1 = bn1.affine();
  return p;
}

// F1: the constants of BN1 (the identity without it), whose statistics go to result.mean1 and var1.
template <class A>
BatchNormValues<A> prologue(const MBConvCore& core, const Extent& in, MBConvForward& result) {
  if (!core.bn1) return identity_batch_norm<A>(in.channels);
  const bool batch = !core.bn1->mean;
  Statistics<A> statistics =
      batch ? batch_statistics<A>(in, core.u) : given_statistics<A>(*core.bn1->mean, *core.bn1->var, in.channels);
  if (batch) {
    result.mean1 = statistic_tensor(statistics.mean, core.u, in.channels);
    result.var1 = statistic_tensor(statistics.var, core.u, in.channels);
  }
  return batch_norm_values<A>(core.bn1->gamma, core.bn1->beta, std::move(statistics), in.channels, core.bn1->eps);
}

template <class A>
MBConvForward forward(const MBConvCore& core) {
  const Geometry g = Geometry::of(core);
  const int64_t channels = g.out.channels, row = g.out.row();
  const auto nothing = [&] { return empty_vector(core.u, {0}); };
  MBConvForward result{g.empty_output(core.u),
                       g.empty_output(core.u),
                       nothing(),
                       nothing(),
                       nothing(),
                       nothing(),
                       nothing(),
                       nothing(),
                       nothing(),
                       nothing(),
                       nothing()};
  const BatchNormValues<A> bn1 = prologue<A>(core, g.in, result);

  // F2: y and, where they are needed, its parts' statistics.
  const bool batch = !core.bn2.mean;
  const DepthwiseUnits units = forward_units(g.shape, g.in.layout);
  const int64_t parts = g.out.images * units.strips;
  Buffer<A> means(batch ? parts * row : 0), m2s(batch ? parts * row : 0);
  const Buffer<A> weight = read_depthwise_weight<A>(core.w, channels, g.shape.taps());
  auto p = depthwise_params<DepthwiseForwardParams>(core, g, units, weight, bn1);
  p.out = result.y.mutable_data_ptr();
  p.mean = batch ? means.data() : nullptr;
  p.m2 = batch ? m2s.data() : nullptr;
  depthwise_forward(p);
  const auto part_size = [&](int64_t part) {
    const int64_t first = part % units.strips * units.rows_per_strip;
    return std::min(units.rows_per_strip, g.shape.out_height - first) * g.shape.out_width;
  };
  Statistics<A> statistics = batch ? merge_statistics(means, m2s, parts, row, part_size)
                                   : given_statistics<A>(*core.bn2.mean, *core.bn2.var, channels);
  if (batch) {
    result.mean2 = statistic_tensor(statistics.mean, core.u, channels);
    result.var2 = statistic_tensor(statistics.var, core.u, channels);
  }
  const auto bn2 = batch_norm_values<A>(core.bn2.gamma, core.bn2.beta, std::move(statistics), channels, core.bn2.eps);

  const void* const y = result.y.const_data_ptr();
  const void* scale = nullptr;
  std::optional<Excite<A>> se;
  if (core.se) {
    // F3: the pooled z, and A3 and A5 for the backward pass.
    const int64_t size = g.out.parts() * row;
    Buffer<A> z(size), slope(size), slope_x(size);
    forward_sums({g.out, core.activation, y, bn2.affine(), z.data(), slope.data(), slope_x.data()});
    se.emplace(make_excite<A>(core, g.out));
    se->run(z, g.out.chunks(), g.out.pixels);
    scale = se->scale.data();
    const auto save = [&](const Buffer<A>& values, int64_t columns) {
      return vector_tensor(values.data(), core.u, g.out.images, columns);
    };
    result.pooled = save(se->pooled, channels);
    result.hidden = save(se->hidden, se->squeezed);
    result.logits = save(se->logits, channels);
    result.a3 = save(sum_rows(slope, g.out.images, g.out.chunks(), row), channels);
    result.a5 = save(sum_rows(slope_x, g.out.images, g.out.chunks(), row), channels);
  }
  // F4
  normalize({g.out, core.activation, y, bn2.affine(), scale, nullptr, result.out.mutable_data_ptr()});
  return result;
}

template <class A>
MBConvInference inference(const MBConvCore& core, bool scaled) {
  const Geometry g = Geometry::of(core);
  const int64_t channels = g.out.channels;
  MBConvForward unused;
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
  if (!core.se) return {out, empty_vector(core.u, {0})};
  auto se = make_excite<A>(core, g.out);
  se.run(sums, units.strips, g.out.pixels);
  if (!scaled) return {out, vector_tensor(se.scale.data(), core.u, g.out.images, channels)};
  const auto none = identity_batch_norm<A>(channels);
  normalize({g.out, Activation::identity, out.const_data_ptr(), none.affine(), se.scale.data(), nullptr,
             out.mutable_data_ptr()});
  return {out, empty_vector(core.u, {0})};
}

template <class A>
BatchNormValues<A> saved_batch_norm(const BatchNormTensors& bn, int64_t channels) {
  return batch_norm_values<A>(bn.gamma, bn.beta, given_statistics<A>(*bn.mean, *bn.var, channels), channels, bn.eps);
}

template <class A>
MBConvBackward backward(const MBConvCore& core, const Tensor& grad, const Tensor& y,
                        const std::optional<ExciteSaved>& saved, bool training1, bool training2) {
  const Geometry g = Geometry::of(core);
  const int64_t channels = g.out.channels, row = g.out.row();
  const auto nothing = [&] { return empty_vector(core.u, {0}); };
  MBConvBackward result{torch::stable::empty_like(core.u),
                        core.w,
                        nothing(),
                        nothing(),
                        nothing(),
                        nothing(),
                        nothing(),
                        nothing(),
                        nothing(),
                        nothing()};
  const auto bn1 = core.bn1 ? saved_batch_norm<A>(*core.bn1, channels) : identity_batch_norm<A>(channels);
  const auto bn2 = saved_batch_norm<A>(core.bn2, channels);

  // B1: A1, A2 and A4; from them SE's gradients and BN2's.
  const auto sums = image_backward_sums<A>(g.out, core.activation, grad, y, bn2.affine(), core.se.has_value());
  std::optional<Excite<A>> se;
  std::optional<ExciteGradient<A>> dse;
  Buffer<A> a3(0), a5(0);
  if (core.se) {
    se.emplace(make_excite<A>(core, g.out));
    se->restore(saved->pooled, saved->hidden, saved->logits);
    dse.emplace(ExciteGradient<A>::from(*se, sums.gz));
    for (int64_t i = 0; i < dse->dpooled.size(); ++i) dse->dpooled[i] /= A(g.out.pixels);
    a3 = read_rows<A>(saved->a3, g.out.images, channels);
    a5 = read_rows<A>(saved->a5, g.out.images, channels);
    result.dw1 = parameter_gradient(dse->dw1.data(), se->squeezed, channels, core.se->w1);
    result.db1 = parameter_gradient(dse->db1.data(), 1, se->squeezed, core.se->b1);
    result.dw2 = parameter_gradient(dse->dw2.data(), channels, se->squeezed, core.se->w2);
    result.db2 = parameter_gradient(dse->db2.data(), 1, channels, core.se->b2);
  }
  const A* const factor = se ? se->scale.data() : nullptr;
  const A* const offset = dse ? dse->dpooled.data() : nullptr;
  const auto dbn2 = batch_norm_gradient<A>(g.out, sums.slope.data(), sums.slope_x.data(), factor, offset, a3.data(),
                                           a5.data(), training2);
  result.dgamma2 = parameter_gradient(dbn2.dgamma.data(), 1, channels, core.bn2.gamma);
  result.dbeta2 = parameter_gradient(dbn2.dbeta.data(), 1, channels, core.bn2.beta);

  // B2: dv1 (or du), dW and BN1's sums.
  const DepthwiseUnits units = backward_units(g.shape, g.in.layout);
  const int64_t taps = g.shape.taps(), parts = units.group_parts();
  const Buffer<A> weight = read_depthwise_weight<A>(core.w, channels, int(taps));
  Buffer<A> dweight(parts * taps * row), dbeta1(core.bn1 ? parts * row : 0), dgamma1(core.bn1 ? parts * row : 0);
  auto p = depthwise_params<DepthwiseBackwardParams>(core, g, units, weight, bn1);
  p.grad = grad.const_data_ptr();
  p.y = y.const_data_ptr();
  p.affine2 = bn2.affine();
  p.gradient = {factor, offset, dbn2.mean_dv.data(), dbn2.mean_dv_x.data()};
  p.dx = result.du.mutable_data_ptr();
  p.dweight = dweight.data();
  p.dbeta1 = dbeta1.data();
  p.dgamma1 = dgamma1.data();
  depthwise_backward(p);
  result.dw = depthwise_weight_gradient(sum_rows(dweight, 1, parts, taps * row).data(), channels, int(taps), core.w);
  if (!core.bn1) return result;

  // B3: du from dv1, in place.
  const Buffer<A> beta_sum = sum_rows(dbeta1, 1, parts, row), gamma_sum = sum_rows(dgamma1, 1, parts, row);
  result.dgamma1 = parameter_gradient(gamma_sum.data(), 1, channels, core.bn1->gamma);
  result.dbeta1 = parameter_gradient(beta_sum.data(), 1, channels, core.bn1->beta);
  Buffer<A> mean_dv(row), mean_dv_x(row);
  const int64_t count = g.in.images * g.in.pixels;
  for (int64_t c = 0; training1 && count > 0 && c < row; ++c) {
    mean_dv[c] = beta_sum[c] / A(count);
    mean_dv_x[c] = gamma_sum[c] / A(count);
  }
  input_gradient({g.in,
                  Activation::identity,
                  result.du.const_data_ptr(),
                  core.u.const_data_ptr(),
                  bn1.affine(),
                  {nullptr, nullptr, mean_dv.data(), mean_dv_x.data()},
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
  check_depthwise_gradient(grad, y, depthwise_shape(core), layout_of(core.u));
  return dispatch_accumulator(dtype_of(core.u), [&](auto a) {
    return cpu::backward<typename decltype(a)::type>(core, grad, y, saved, training1, training2);
  });
}

}  // namespace effnet_kernels
