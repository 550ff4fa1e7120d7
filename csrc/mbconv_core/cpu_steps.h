// The steps that mbconv_core (cpu_passes.cpp) and a whole MBConv block (mbconv/cpu_passes.cpp) share; F1 … B3 are the rows
// of docs/design.md's table.
#pragma once

#include "common/cpu/allocate.h"
#include "depthwise_conv_bn_act/cpu.h"
#include "mbconv_core/passes.h"
#include "squeeze_excite/cpu.h"

namespace effnet_kernels::cpu {
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
    return allocate_activations(u, {shape.images, shape.channels, shape.out_height, shape.out_width}, out.layout);
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

// What F2 and F3 leave for what follows them.
template <class A>
struct Middle {
  BatchNormValues<A> bn2;
  std::optional<Excite<A>> se;

  const void* scale() const { return se ? se->scale.data() : nullptr; }
};

// F2: y and, where they are needed, its parts' statistics.
template <class A>
BatchNormValues<A> convolve(const MBConvCore& core, const Geometry& g, const BatchNormValues<A>& bn1,
                            MBConvForward& result) {
  const int64_t channels = g.out.channels, row = g.out.row();
  const bool batch = !core.bn2.mean;
  const DepthwiseUnits units = forward_units(g.shape, g.in.layout);
  const int64_t parts = g.out.images * units.strips;
  Buffer<A> means = padded_rows<A>(batch ? parts : 0, channels), m2s = padded_rows<A>(batch ? parts : 0, channels);
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
  return batch_norm_values<A>(core.bn2.gamma, core.bn2.beta, std::move(statistics), channels, core.bn2.eps);
}

// F3: the pooled z and SE's layers, with A3 and A5 for the backward pass.
template <class A>
std::optional<Excite<A>> pool_and_excite(const MBConvCore& core, const Geometry& g, const BatchNormValues<A>& bn2,
                                         MBConvForward& result) {
  if (!core.se) return std::nullopt;
  Buffer<A> z = padded_rows<A>(g.out.parts(), g.out.channels);
  ImageSums<A> a3(core.u, g.out), a5(core.u, g.out);
  forward_sums({g.out, core.activation, result.y.const_data_ptr(), bn2.affine(), z.data(), a3.data(), a5.data()});
  std::optional<Excite<A>> se(make_excite<A>(core, g.out));
  auto saved = se->run(core.u, z, g.out.chunks(), g.out.pixels);
  result.pooled = std::move(saved.pooled);
  result.hidden = std::move(saved.hidden);
  result.logits = std::move(saved.logits);
  result.a3 = a3.tensor();
  result.a5 = a5.tensor();
  return se;
}

template <class A>
BatchNormValues<A> saved_batch_norm(const BatchNormTensors& bn, int64_t channels) {
  return batch_norm_values<A>(bn.gamma, bn.beta, given_statistics<A>(*bn.mean, *bn.var, channels), channels, bn.eps);
}

// What the forward pass left, from what it saved.
template <class A>
Middle<A> saved_middle(const MBConvCore& core, const Geometry& g, const std::optional<ExciteSaved>& saved) {
  Middle<A> middle{saved_batch_norm<A>(core.bn2, g.out.channels), std::nullopt};
  if (!core.se) return middle;
  middle.se.emplace(make_excite<A>(core, g.out));
  middle.se->restore(saved->pooled, saved->hidden, saved->logits);
  return middle;
}

// BN1's sums, divided by the number of elements, which B3 takes; zero where its statistics are constants.
template <class A>
struct PrologueGradient {
  Buffer<A> mean_dv, mean_dv_x;
};

// From the sums of B1: SE's gradients and BN2's; then B2: dv1 (du without BN1) in result.du, dW and BN1's sums.
template <class A>
PrologueGradient<A> backward_middle(const MBConvCore& core, const Geometry& g, const BatchNormValues<A>& bn1,
                                    Middle<A>& middle, const BackwardSums<A>& sums, const Tensor& grad, const Tensor& y,
                                    const std::optional<ExciteSaved>& saved, bool training1, bool training2,
                                    MBConvBackward& result) {
  const int64_t channels = g.out.channels, row = g.out.row();
  std::optional<ExciteGradient<A>> dse;
  Rows<A> a3, a5;
  if (core.se) {
    const ExciteTensors& weights = *core.se;
    dse.emplace(ExciteGradient<A>::from(*middle.se, sums.gz.data(), weights.w1, weights.b1, weights.w2, weights.b2));
    parallel_over(g.out.images, row, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * row; i < end * row; ++i) dse->dpooled[i] /= A(g.out.pixels);
    });
    a3 = {saved->a3, g.out.images, channels};
    a5 = {saved->a5, g.out.images, channels};
    result.dw1 = dse->dw1;
    result.db1 = dse->db1;
    result.dw2 = dse->dw2;
    result.db2 = dse->db2;
  }
  const A* const factor = middle.se ? middle.se->scale.data() : nullptr;
  const A* const offset = dse ? dse->dpooled.data() : nullptr;
  const auto dbn2 = batch_norm_gradient<A>(g.out, sums.slope.data(), sums.slope_x.data(), factor, offset, a3.data(),
                                           a5.data(), training2);
  result.dgamma2 = parameter_gradient(dbn2.dgamma.data(), 1, channels, core.bn2.gamma);
  result.dbeta2 = parameter_gradient(dbn2.dbeta.data(), 1, channels, core.bn2.beta);

  const DepthwiseUnits units = backward_units(g.shape, g.in.layout);
  const int64_t taps = g.shape.taps(), parts = units.group_parts();
  const Buffer<A> weight = read_depthwise_weight<A>(core.w, channels, int(taps));
  Buffer<A> dweight = padded_rows<A>(parts * taps, channels), dbeta1 = padded_rows<A>(core.bn1 ? parts : 0, channels),
            dgamma1 = padded_rows<A>(core.bn1 ? parts : 0, channels);
  auto p = depthwise_params<DepthwiseBackwardParams>(core, g, units, weight, bn1);
  p.grad = grad.const_data_ptr();
  p.y = y.const_data_ptr();
  p.affine2 = middle.bn2.affine();
  p.gradient = {factor, offset, dbn2.mean_dv.data(), dbn2.mean_dv_x.data()};
  result.du = allocate_like(core.u);
  p.dx = result.du.mutable_data_ptr();
  p.dweight = dweight.data();
  p.dbeta1 = dbeta1.data();
  p.dgamma1 = dgamma1.data();
  depthwise_backward(p);
  result.dw =
      depthwise_weight_gradient(sum_rows(std::move(dweight), 1, parts, taps * row).data(), channels, int(taps), core.w);
  PrologueGradient<A> prologue{Buffer<A>(row), Buffer<A>(row)};
  if (!core.bn1) return prologue;

  const Buffer<A> beta_sum = sum_rows(std::move(dbeta1), 1, parts, row);
  const Buffer<A> gamma_sum = sum_rows(std::move(dgamma1), 1, parts, row);
  result.dgamma1 = parameter_gradient(gamma_sum.data(), 1, channels, core.bn1->gamma);
  result.dbeta1 = parameter_gradient(beta_sum.data(), 1, channels, core.bn1->beta);
  const int64_t count = g.in.images * g.in.pixels;
  for (int64_t c = 0; training1 && count > 0 && c < row; ++c) {
    prologue.mean_dv[c] = beta_sum[c] / A(count);
    prologue.mean_dv_x[c] = gamma_sum[c] / A(count);
  }
  return prologue;
}

}  // namespace effnet_kernels::cpu
