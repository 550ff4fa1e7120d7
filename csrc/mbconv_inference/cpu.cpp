// mbconv_inference on CPU: checks, allocates, registers.
#include <torch/csrc/stable/library.h>

#include "mbconv_inference/layer.h"

namespace effnet_kernels {

cpu::MBConvInferenceParams cpu::mbconv_of(const Activations& x, const MBConvLayer& layer, Sections& weights) {
  const auto [channels, out_channels, squeezed, kernel_size, stride, padding, activation, gate, expands, residual,
              bfloat16_products] = layer;
  STD_TORCH_CHECK(x.is_channels_last(), "x: expected a dense channels_last tensor");
  check_channels(channels, 1, "channels");
  check_channels(out_channels, 1, "out_channels");
  check_channels(squeezed, 0, "squeezed");
  STD_TORCH_CHECK(kernel_size == 3 || kernel_size == 5 || kernel_size == 7, "kernel_size: expected 3, 5 or 7, got ",
                  kernel_size);
  STD_TORCH_CHECK(stride == 1 || stride == 2, "stride: expected 1 or 2, got ", stride);
  const int64_t out_height = prepared_output_size(x.height, kernel_size, stride, padding[0], padding[1]);
  const int64_t out_width = prepared_output_size(x.width, kernel_size, stride, padding[2], padding[3]);
  STD_TORCH_CHECK(expands || channels == x.channels, "x: expected ", channels, " channels, got ", x.channels);
  STD_TORCH_CHECK(!residual || (out_channels == x.channels && out_height == x.height && out_width == x.width),
                  "residual: expected an output of the shape of x");
  STD_TORCH_CHECK(!bfloat16_products || (x.dtype == DType::bfloat16 && x.channels % 2 == 0 && channels % 2 == 0),
                  "bfloat16_products: expected bfloat16 x and even numbers of channels");

  MBConvInferenceParams p{};
  p.dtype = x.dtype;
  p.shape = {x.images,  channels,         x.height,    x.width,         out_height,
             out_width, int(kernel_size), int(stride), int(padding[0]), int(padding[2])};
  p.in_channels = x.channels;
  p.out_channels = out_channels;
  p.squeezed = squeezed;
  p.activation = activation_of(activation);
  p.gate = gate_of(gate);
  p.residual = residual;
  p.bfloat16_products = bfloat16_products;
  p.x = x.data;

  if (expands) {
    p.expand = weights.factor(x.channels, channels, bfloat16_products);
    p.expand_bias = weights.vector(channels);
  }
  p.depthwise = weights.matrix(kernel_size * kernel_size, channels);
  p.depthwise_bias = weights.vector(channels);
  if (squeezed > 0) {
    p.reduce = weights.matrix(channels, squeezed);
    p.reduce_bias = weights.vector(squeezed);
    p.excite = weights.matrix(squeezed, channels);
    p.excite_bias = weights.vector(channels);
  }
  p.project = weights.factor(channels, out_channels, bfloat16_products);
  p.project_bias = weights.vector(out_channels);
  return p;
}

namespace {

Tensor mbconv_inference(const Tensor& x, const Tensor& weights, int64_t channels, int64_t out_channels,
                        int64_t squeezed, int64_t kernel_size, int64_t stride, const std::vector<int64_t>& padding,
                        int64_t activation, int64_t gate, bool expands, bool residual, bool bfloat16_products) {
  STD_TORCH_CHECK(padding.size() == 4, "padding: expected 4 values");
  const auto input = cpu::Activations::of(x);
  cpu::Sections sections(weights, x);
  cpu::MBConvInferenceParams p = cpu::mbconv_of(input,
                                                {channels, out_channels, squeezed, kernel_size, stride, padding.data(),
                                                 activation, gate, expands, residual, bfloat16_products},
                                                sections);
  sections.check_all_used();
  const DepthwiseShape& s = p.shape;
  Tensor out = empty_activations(x, {s.images, out_channels, s.out_height, s.out_width}, Layout::nhwc);
  p.out = out.mutable_data_ptr();
  cpu::mbconv_inference(p);
  return out;
}

}  // namespace
}  // namespace effnet_kernels

STABLE_TORCH_LIBRARY_IMPL(effnet_kernels, CPU, m) {
  m.impl("mbconv_inference", TORCH_BOX(&effnet_kernels::mbconv_inference));
}
