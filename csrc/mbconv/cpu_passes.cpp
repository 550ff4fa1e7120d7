// A whole MBConv block on CPU, forward and backward in training: the steps of mbconv_core, with F1, F4, B1 and B3 inside
// the products that they stand next to.
#include "mbconv/cpu.h"
#include "mbconv/operators.h"
#include "mbconv_core/cpu_steps.h"
#include "pointwise_conv/weight.h"

namespace effnet_kernels::cpu {
namespace {

RowChunks chunks_of(const Extent& extent, int64_t bottleneck) {
  return RowChunks::make(extent.images, extent.pixels, extent.channels + bottleneck, extent.channels * bottleneck);
}

// u = x · W1ᵀ with F1 in it: BN1's constants.
template <class A>
BatchNormValues<A> expand(const MBConvBlock& block, MBConvBlockForward& result) {
  const Tensor& x = block.x;
  const BatchNormTensors& bn1 = *block.core.bn1;
  const PointwiseWeight<A> w(*block.w_expand);
  const int64_t channels = w.out_channels;
  result.u = allocate_activations(x, {x.size(0), channels, x.size(2), x.size(3)}, Layout::nhwc);
  const RowChunks chunks = chunks_of(extent_of(result.u), w.in_channels);
  const bool batch = !bn1.mean;
  const int64_t row = padded_channels(channels);
  const int64_t parts = batch ? chunks.chunks() : 0;
  Buffer<A> means = padded_rows<A>(parts, channels), m2s = padded_rows<A>(parts, channels);
  const Buffer<A> weight = w.packed_transposed();
  pointwise_forward({dtype_of(x), chunks, w.in_channels, channels, x.const_data_ptr(), weight.data(),
                     result.u.mutable_data_ptr(), batch ? means.data() : nullptr, batch ? m2s.data() : nullptr});
  Statistics<A> statistics = batch ? merge_statistics(means, m2s, chunks.chunks(), row,
                                                      [&](int64_t chunk) { return chunks.chunk_rows(chunk); })
                                   : given_statistics<A>(*bn1.mean, *bn1.var, channels);
  if (batch) {
    result.middle.mean1 = statistic_tensor(statistics.mean, x, channels);
    result.middle.var1 = statistic_tensor(statistics.var, x, channels);
  }
  return batch_norm_values<A>(bn1.gamma, bn1.beta, std::move(statistics), channels, bn1.eps);
}

template <class A>
MBConvBlockForward forward(const MBConvBlock& block) {
  MBConvBlockForward result{Tensor(), Tensor(), MBConvForward::none()};
  MBConvCore core = block.core;
  const auto bn1 = core.bn1 ? expand<A>(block, result) : identity_batch_norm<A>(block.x.size(1));
  if (core.bn1) core.u = result.u;
  const Geometry g = Geometry::of(core);
  result.middle.y = g.empty_output(core.u);
  const BatchNormValues<A> bn2 = convolve(core, g, bn1, result.middle);
  const std::optional<Excite<A>> se = pool_and_excite(core, g, bn2, result.middle);

  // F4, and the projection.
  const PointwiseWeight<A> w(block.w_project);
  const DepthwiseShape& s = g.shape;
  result.out = allocate_activations(core.u, {s.images, w.out_channels, s.out_height, s.out_width}, Layout::nhwc);
  const Buffer<A> weight = w.packed_transposed();
  project_forward({g.out.dtype, chunks_of(g.out, w.out_channels), core.activation, s.channels, w.out_channels,
                   result.middle.y.const_data_ptr(), bn2.affine(), se ? se->scale.data() : nullptr, weight.data(),
                   result.out.mutable_data_ptr()});
  return result;
}

// The projection's backward with B1 in it: g, the gradient of what it projected, dW3, and B1's sums per image.
template <class A>
BackwardSums<A> project_backward_sums(const MBConvBlock& block, const Geometry& g, const Middle<A>& middle,
                                      const Tensor& grad, const Tensor& y, const Tensor& projected_gradient,
                                      bool needs_dw, MBConvBlockBackward& result) {
  const PointwiseWeight<A> w(block.w_project);
  const RowChunks chunks = chunks_of(g.out, w.out_channels);
  const int64_t row = g.out.row(), size = w.out_channels * row;
  const bool few = chunks.few && is_of<A>(grad);
  const auto weight = w.for_gradient(few);
  const auto sums = [&] { return Buffer<A>::unfilled(chunks.parts() * row); };
  Buffer<A> gz = sums(), slope = sums(), slope_x = sums();
  Buffer<A> dweight = weight_gradient_sums<A>(chunks, needs_dw && !few, size);
  Buffer<A> scaled = Buffer<A>::unfilled(needs_dw && few ? chunks.rows() * row : 0);
  project_backward({g.out.dtype, chunks, block.core.activation, g.out.channels, w.out_channels, grad.const_data_ptr(),
                    y.const_data_ptr(), middle.bn2.affine(), middle.scale(), weight.data, weight.packed(),
                    projected_gradient.mutable_data_ptr(), gz.data(), slope.data(), slope_x.data(),
                    needs_dw && !few ? dweight.data() : nullptr, needs_dw && few ? scaled.data() : nullptr});
  if (needs_dw && few) {
    result.dw_project = outer_gradient(chunks.rows(), static_cast<const A*>(grad.const_data_ptr()), w.out_channels,
                                       w.out_channels, scaled.data(), row, g.out.channels, block.w_project);
  } else if (needs_dw) {
    result.dw_project = summed_gradient(dweight, w.out_channels, g.out.channels, block.w_project);
  }
  const auto per_image = [&](Buffer<A>& sums) {
    return sum_rows(std::move(sums), g.out.images, chunks.parts_per_image, row);
  };
  return {per_image(gz), per_image(slope), per_image(slope_x)};
}

// B3 and the expansion's backward: dx and dW1 from dv1.
template <class A>
void expand_backward_from(const MBConvBlock& block, const Geometry& g, const BatchNormValues<A>& bn1,
                          const PrologueGradient<A>& dbn1, const MBConvNeeds& needs, MBConvBlockBackward& result) {
  if (!needs.dx && !needs.dw_expand) return;
  const PointwiseWeight<A> w(*block.w_expand);
  const int64_t k = w.in_channels, c = w.out_channels, row = padded_channels(c), size = k * row;
  const RowChunks chunks = chunks_of(g.in, k);
  const bool few = chunks.few && is_of<A>(block.x);
  const auto weight = w.for_gradient(few);
  Buffer<A> dweight = weight_gradient_sums<A>(chunks, needs.dw_expand && !few, size);
  Buffer<A> du = Buffer<A>::unfilled(needs.dw_expand && few ? chunks.rows() * row : 0);
  if (needs.dx) result.dx = allocate_like(block.x);
  expand_backward({g.in.dtype, chunks, k, c, result.middle.du.const_data_ptr(), block.core.u.const_data_ptr(),
                   block.x.const_data_ptr(), bn1.affine(), dbn1.mean_dv.data(), dbn1.mean_dv_x.data(), weight.data,
                   weight.packed(), needs.dx ? result.dx.mutable_data_ptr() : nullptr,
                   needs.dw_expand && !few ? dweight.data() : nullptr, needs.dw_expand && few ? du.data() : nullptr});
  if (needs.dw_expand && few) {
    result.dw_expand = outer_gradient(chunks.rows(), du.data(), row, c, static_cast<const A*>(block.x.const_data_ptr()),
                                      k, k, *block.w_expand);
  } else if (needs.dw_expand) {
    result.dw_expand = summed_transposed_gradient(dweight, k, c, *block.w_expand);
  }
}

template <class A>
MBConvBlockBackward backward(const MBConvBlock& block, const Tensor& grad, const Tensor& y,
                             const std::optional<ExciteSaved>& saved, bool training1, bool training2,
                             const MBConvNeeds& needs) {
  const MBConvCore& core = block.core;
  const Geometry g = Geometry::of(core);
  MBConvBlockBackward result{Tensor(), Tensor(), Tensor(), MBConvBackward::none()};
  const auto bn1 = core.bn1 ? saved_batch_norm<A>(*core.bn1, g.in.channels) : identity_batch_norm<A>(g.in.channels);
  Middle<A> middle = saved_middle<A>(core, g, saved);
  const Tensor projected_gradient = allocate_like(y);
  const auto sums = project_backward_sums(block, g, middle, grad, y, projected_gradient, needs.dw_project, result);
  const auto dbn1 =
      backward_middle(core, g, bn1, middle, sums, projected_gradient, y, saved, training1, training2, result.middle);
  if (core.bn1) {
    expand_backward_from(block, g, bn1, dbn1, needs, result);
  } else {
    result.dx = result.middle.du;
  }
  return result;
}

}  // namespace
}  // namespace effnet_kernels::cpu

namespace effnet_kernels {

MBConvBlockForward CpuBlockPasses::forward(const MBConvBlock& block) {
  return dispatch_accumulator(dtype_of(block.x),
                              [&](auto a) { return cpu::forward<typename decltype(a)::type>(block); });
}

MBConvBlockBackward CpuBlockPasses::backward(const MBConvBlock& block, const Tensor& grad, const Tensor& y,
                                             const std::optional<ExciteSaved>& saved, bool training1, bool training2,
                                             const MBConvNeeds& needs) {
  return dispatch_accumulator(dtype_of(block.x), [&](auto a) {
    return cpu::backward<typename decltype(a)::type>(block, grad, y, saved, training1, training2, needs);
  });
}

}  // namespace effnet_kernels
