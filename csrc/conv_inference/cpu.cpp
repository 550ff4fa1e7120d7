// conv_inference on CPU: checks, allocates, registers.
#include "conv_inference/cpu.h"

#include <torch/csrc/stable/library.h>

#include "common/cpu/prepared.h"

namespace effnet_kernels {
namespace {

Tensor conv_inference(const Tensor& x, const Tensor& weight, const Tensor& bias, const OptionalTensor& residual,
                      int64_t out_channels, int64_t kernel_size, int64_t stride, const std::vector<int64_t>& padding,
                      int64_t activation, bool bfloat16_products) {
  STD_TORCH_CHECK(x.dim() == 4, "x: expected 4 dimensions (N, C, H, W), got ", x.dim());
  const DType dtype = dtype_of(x);
  STD_TORCH_CHECK(dtype != DType::float64, "x: expected float32, float16 or bfloat16");
  STD_TORCH_CHECK(kernel_size >= 1 && stride >= 1, "kernel_size, stride: expected at least 1");
  STD_TORCH_CHECK(padding.size() == 4, "padding: expected 4 values");
  for (const int64_t p : padding) STD_TORCH_CHECK(p >= 0 && p < kernel_size, "padding: expected 0 to kernel_size - 1");
  const int64_t height = x.size(2) + padding[0] + padding[1], width = x.size(3) + padding[2] + padding[3];
  STD_TORCH_CHECK(height >= kernel_size && width >= kernel_size, "x: smaller than the kernel");
  Tensor out = empty_activations(
      x, {x.size(0), out_channels, (height - kernel_size) / stride + 1, (width - kernel_size) / stride + 1},
      Layout::nhwc);
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
      Activation(activation),
      x.const_data_ptr(),
      x.stride(0),
      x.stride(1),
      x.stride(2),
      x.stride(3),
      bfloat16_products,
      cpu::packed_data(weight, kernel_size * kernel_size * x.size(1) / (bfloat16_products ? 2 : 1), out_channels,
                       "weight"),
      cpu::vector_data(bias, cpu::padded_channels(out_channels), "bias"),
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
