// mbconv_inference on CPU: checks, allocates, registers.
#include "mbconv_inference/cpu.h"

#include <torch/csrc/stable/library.h>

#include <utility>

#include "common/cpu/prepared.h"

namespace effnet_kernels {
namespace {

// The sections of the prepared weights, one after the other.
class Sections {
 public:
  Sections(const float* weights, bool bfloat16_products) : first(weights), values(bfloat16_products ? 2 : 1) {}
  const float* vector(int64_t size) { return first + std::exchange(used, used + cpu::padded_channels(size)); }
  const float* matrix(int64_t rows, int64_t columns) { return vector(rows * cpu::padded_channels(columns)); }
  // One that products read, of pairs with bfloat16_products.
  const float* factor(int64_t rows, int64_t columns) { return matrix(rows / values, columns); }
  int64_t size() const { return used; }

 private:
  const float* first;
  int64_t used = 0, values;
};

Tensor mbconv_inference(const Tensor& x, const Tensor& weights, int64_t channels, int64_t out_channels,
                        int64_t squeezed, int64_t kernel_size, int64_t stride, const std::vector<int64_t>& padding,
                        int64_t activation, int64_t gate, bool expands, bool residual, bool bfloat16_products) {
  cpu::check_prepared_input(x);
  STD_TORCH_CHECK(is_channels_last(x) || x.numel() == 0, "x: expected a dense channels_last tensor");
  cpu::check_channels(channels, 1, "channels");
  cpu::check_channels(out_channels, 1, "out_channels");
  cpu::check_channels(squeezed, 0, "squeezed");
  STD_TORCH_CHECK(kernel_size == 3 || kernel_size == 5 || kernel_size == 7, "kernel_size: expected 3, 5 or 7, got ",
                  kernel_size);
  STD_TORCH_CHECK(stride == 1 || stride == 2, "stride: expected 1 or 2, got ", stride);
  STD_TORCH_CHECK(padding.size() == 4, "padding: expected 4 values");
  const int64_t in_channels = x.size(1), height = x.size(2), width = x.size(3);
  const int64_t out_height = cpu::prepared_output_size(height, kernel_size, stride, padding[0], padding[1]);
  const int64_t out_width = cpu::prepared_output_size(width, kernel_size, stride, padding[2], padding[3]);
  STD_TORCH_CHECK(expands || channels == in_channels, "x: expected ", channels, " channels, got ", in_channels);
  STD_TORCH_CHECK(!residual || (out_channels == in_channels && out_height == height && out_width == width),
                  "residual: expected an output of the shape of x");
  STD_TORCH_CHECK(!bfloat16_products || (dtype_of(x) == DType::bfloat16 && in_channels % 2 == 0 && channels % 2 == 0),
                  "bfloat16_products: expected bfloat16 x and even numbers of channels");
  Tensor out = empty_activations(x, {x.size(0), out_channels, out_height, out_width}, Layout::nhwc);

  cpu::MBConvInferenceParams p{};
  p.dtype = dtype_of(x);
  p.shape = {x.size(0), channels,         height,      width,           out_height,
             out_width, int(kernel_size), int(stride), int(padding[0]), int(padding[2])};
  p.in_channels = in_channels;
  p.out_channels = out_channels;
  p.squeezed = squeezed;
  p.activation = activation_of(activation);
  p.gate = gate_of(gate);
  p.residual = residual;
  p.bfloat16_products = bfloat16_products;
  p.x = x.const_data_ptr();
  p.out = out.mutable_data_ptr();

  // As effnet_kernels/ops/prepared.py joins them.
  Sections sections(cpu::vector_data(weights, weights.numel(), x, "weights"), bfloat16_products);
  if (expands) {
    p.expand = sections.factor(in_channels, channels);
    p.expand_bias = sections.vector(channels);
  }
  p.depthwise = sections.matrix(kernel_size * kernel_size, channels);
  p.depthwise_bias = sections.vector(channels);
  if (squeezed > 0) {
    p.reduce = sections.matrix(channels, squeezed);
    p.reduce_bias = sections.vector(squeezed);
    p.excite = sections.matrix(squeezed, channels);
    p.excite_bias = sections.vector(channels);
  }
  p.project = sections.factor(channels, out_channels);
  p.project_bias = sections.vector(out_channels);
  cpu::vector_data(weights, sections.size(), x, "weights");
  cpu::mbconv_inference(p);
  return out;
}

}  // namespace
}  // namespace effnet_kernels

STABLE_TORCH_LIBRARY_IMPL(effnet_kernels, CPU, m) {
  m.impl("mbconv_inference", TORCH_BOX(&effnet_kernels::mbconv_inference));
}
