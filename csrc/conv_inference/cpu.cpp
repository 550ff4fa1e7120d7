// conv_inference on CPU: checks, allocates, registers.
#include <torch/csrc/stable/library.h>

#include "conv_inference/layer.h"

namespace effnet_kernels {

cpu::ConvInferenceParams cpu::conv_of(const Activations& x, const ConvLayer& layer, Sections& weights) {
  constexpr int64_t kLargestKernel = 128;
  check_channels(layer.out_channels, 1, "out_channels");
  STD_TORCH_CHECK(layer.kernel_size >= 1 && layer.kernel_size <= kLargestKernel, "kernel_size: expected 1 to ",
                  kLargestKernel, ", got ", layer.kernel_size);
  STD_TORCH_CHECK(layer.stride >= 1 && layer.stride <= kMostChannels, "stride: expected 1 to ", kMostChannels, ", got ",
                  layer.stride);
  ConvInferenceParams p{};
  p.dtype = x.dtype;
  p.images = x.images;
  p.in_channels = x.channels;
  p.height = x.height;
  p.width = x.width;
  p.out_channels = layer.out_channels;
  p.out_height = prepared_output_size(x.height, layer.kernel_size, layer.stride, layer.padding[0], layer.padding[1]);
  p.out_width = prepared_output_size(x.width, layer.kernel_size, layer.stride, layer.padding[2], layer.padding[3]);
  p.kernel_size = layer.kernel_size;
  p.stride = layer.stride;
  p.top = layer.padding[0];
  p.left = layer.padding[2];
  p.activation = activation_of(layer.activation);
  p.x = x.data;
  p.x_image = x.image_stride;
  p.x_channel = x.channel_stride;
  p.x_row = x.row_stride;
  p.x_column = x.column_stride;
  p.bfloat16_products = layer.bfloat16_products;
  STD_TORCH_CHECK(!p.bfloat16_products || (x.dtype == DType::bfloat16 && x.channels % 2 == 0 && p.plain()),
                  "bfloat16_products: expected a 1×1 convolution of dense channels_last bfloat16 pixels, of an even "
                  "number of channels");
  p.weight = weights.factor(p.depth(), p.out_channels, p.bfloat16_products);
  p.bias = weights.vector(p.out_channels);
  return p;
}

namespace {

Tensor conv_inference(const Tensor& x, const Tensor& weights, const OptionalTensor& residual, int64_t out_channels,
                      int64_t kernel_size, int64_t stride, const std::vector<int64_t>& padding, int64_t activation,
                      bool bfloat16_products) {
  STD_TORCH_CHECK(padding.size() == 4, "padding: expected 4 values");
  const auto input = cpu::Activations::of(x);
  cpu::Sections sections(weights, x);
  cpu::ConvInferenceParams p =
      cpu::conv_of(input, {out_channels, kernel_size, stride, padding.data(), activation, bfloat16_products}, sections);
  sections.check_all_used();
  Tensor out = empty_activations(x, {p.images, p.out_channels, p.out_height, p.out_width}, Layout::nhwc);
  if (residual) {
    check_dense_like(*residual, out, Layout::nhwc, "residual");
    p.residual = residual->const_data_ptr();
  }
  p.out = out.mutable_data_ptr();
  cpu::conv_inference(p);
  return out;
}

}  // namespace
}  // namespace effnet_kernels

STABLE_TORCH_LIBRARY_IMPL(effnet_kernels, CPU, m) {
  m.impl("conv_inference", TORCH_BOX(&effnet_kernels::conv_inference));
}
