// conv_inference on CPU: checks, allocates, registers.
#include "conv_inference/cpu.h"

#include <torch/csrc/stable/library.h>

#include "common/cpu/prepared.h"

namespace effnet_kernels {
namespace {

Tensor conv_inference(const Tensor& x, const Tensor& weight, const Tensor& bias, const OptionalTensor& residual,
                      int64_t out_channels, int64_t kernel_size, int64_t stride, const std::vector<int64_t>& padding,
                      int64_t activation, bool bfloat16_products) {
  constexpr int64_t kLargestKernel = 128;
  cpu::check_prepared_input(x);
  const DType dtype = dtype_of(x);
  cpu::check_channels(out_channels, 1, "out_channels");
  STD_TORCH_CHECK(kernel_size >= 1 && kernel_size <= kLargestKernel, "kernel_size: expected 1 to ", kLargestKernel,
                  ", got ", kernel_size);
  STD_TORCH_CHECK(stride >= 1 && stride <= cpu::kMostChannels, "stride: expected 1 to ", cpu::kMostChannels, ", got ",
                  stride);
  STD_TORCH_CHECK(padding.size() == 4, "padding: expected 4 values");
  const int64_t out_height = cpu::prepared_output_size(x.size(2), kernel_size, stride, padding[0], padding[1]);
  const int64_t out_width = cpu::prepared_output_size(x.size(3), kernel_size, stride, padding[2], padding[3]);
  Tensor out = empty_activations(x, {x.size(0), out_channels, out_height, out_width}, Layout::nhwc);
  if (residual) check_dense_like(*residual, out, Layout::nhwc, "residual");
  const cpu::ConvInferenceParams params{
      dtype,
      x.size(0),
      x.size(1),
      x.size(2),
      x.size(3),
      out_channels,
      out.size(2),
      out.size(3),
      kernel_size,
      stride,
      padding[0],
      padding[2],
      activation_of(activation),
      x.const_data_ptr(),
      x.stride(0),
      x.stride(1),
      x.stride(2),
      x.stride(3),
      bfloat16_products,
      cpu::packed_data(weight, kernel_size * kernel_size * x.size(1) / (bfloat16_products ? 2 : 1), out_channels, x,
                       "weight"),
      cpu::vector_data(bias, cpu::padded_channels(out_channels), x, "bias"),
      residual ? residual->const_data_ptr() : nullptr,
      out.mutable_data_ptr()};
  STD_TORCH_CHECK(!bfloat16_products || (dtype == DType::bfloat16 && x.size(1) % 2 == 0 && params.plain()),
                  "bfloat16_products: expected a 1×1 convolution of dense channels_last bfloat16 pixels, of an even "
                  "number of channels");
  cpu::conv_inference(params);
  return out;
}

}  // namespace
}  // namespace effnet_kernels

STABLE_TORCH_LIBRARY_IMPL(effnet_kernels, CPU, m) {
  m.impl("conv_inference", TORCH_BOX(&effnet_kernels::conv_inference));
}
