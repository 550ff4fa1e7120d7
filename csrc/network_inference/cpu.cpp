// network_inference on CPU: prepared layers one after the other, without an operator or a tensor for each. Checks all of
// them before the first runs.
#include "network_inference/cpu.h"

#include <torch/csrc/stable/library.h>

#include <array>
#include <variant>

#include "common/cpu/buffer.h"
#include "conv_inference/layer.h"
#include "mbconv_inference/layer.h"

namespace effnet_kernels {
namespace {

// One layer, as effnet_kernels/ops/prepared_network.py writes it down.
struct PlanRow {
  int64_t kind, out_channels, kernel_size, stride, padding[4], activation, bfloat16_products;
  int64_t residual;  // the input of this layer (1) or of the one before (2) is added; 0: none
  int64_t channels, squeezed, gate, expands;
};
constexpr int64_t kPlanColumns = sizeof(PlanRow) / sizeof(int64_t);
constexpr int64_t kConv = 0, kMBConv = 1, kPool = 2;

bool flag(int64_t value, const char* name) {
  STD_TORCH_CHECK(value == 0 || value == 1, "plan: expected 0 or 1 as ", name, ", got ", value);
  return value == 1;
}

class Network {
 public:
  Network(const Tensor& x, const Tensor& weights, const Tensor& plan) : inputs_{cpu::Activations::of(x)} {
    STD_TORCH_CHECK(plan.defined() && plan.dim() == 2 && plan.size(1) == kPlanColumns && plan.size(0) >= 1 &&
                        plan.scalar_type() == ScalarType::Long && plan.is_contiguous(),
                    "plan: expected a contiguous int64 tensor of ", kPlanColumns, " columns");
    check_device(plan, x, "plan");
    cpu::Sections sections(weights, x);
    const auto* const rows = static_cast<const PlanRow*>(plan.const_data_ptr());
    for (int64_t i = 0; i < plan.size(0); ++i) add(rows[i], sections);
    sections.check_all_used();
  }

  const cpu::Activations& result() const { return inputs_.back(); }

  void run(void* out) {
    constexpr size_t kKept = 3;  // a layer's input, its result, and the input of the layer before
    std::array<cpu::Buffer<char>, kKept> memory{cpu::Buffer<char>(0), cpu::Buffer<char>(0), cpu::Buffer<char>(0)};
    for (size_t i = 0; i < layers_.size(); ++i) {
      void* target = out;
      if (i + 1 < layers_.size()) {
        cpu::Buffer<char>& slot = memory[i % kKept];
        slot = cpu::Buffer<char>(0);
        slot = cpu::Buffer<char>::unfilled(inputs_[i + 1].bytes());
        target = slot.data();
      }
      std::visit([&](auto& params) { run_layer(params, i, target); }, layers_[i].params);
      inputs_[i + 1].data = target;
    }
  }

 private:
  struct Layer {
    std::variant<cpu::ConvInferenceParams, cpu::MBConvInferenceParams, cpu::PoolInferenceParams> params;
    int64_t residual;
  };

  void add(const PlanRow& row, cpu::Sections& sections) {
    const cpu::Activations& x = inputs_.back();
    STD_TORCH_CHECK(row.residual >= 0 && row.residual <= 2 && row.residual <= int64_t(inputs_.size()),
                    "plan: expected 0 to 2 as residual, and no more than there are layers, got ", row.residual);
    const auto result = [&](int64_t channels, int64_t height, int64_t width) {
      return cpu::Activations::channels_last(x.dtype, x.images, channels, height, width);
    };
    cpu::Activations out;
    if (row.kind == kConv) {
      const auto p = cpu::conv_of(x,
                                  {row.out_channels, row.kernel_size, row.stride, row.padding, row.activation,
                                   flag(row.bfloat16_products, "bfloat16_products")},
                                  sections);
      out = result(p.out_channels, p.out_height, p.out_width);
      if (row.residual > 0) check_added(inputs_[inputs_.size() - row.residual], out);
      layers_.push_back({p, row.residual});
    } else if (row.kind == kMBConv) {
      const auto p = cpu::mbconv_of(x,
                                    {row.channels, row.out_channels, row.squeezed, row.kernel_size, row.stride,
                                     row.padding, row.activation, row.gate, flag(row.expands, "expands"),
                                     flag(row.residual, "residual"), flag(row.bfloat16_products, "bfloat16_products")},
                                    sections);
      out = result(p.out_channels, p.shape.out_height, p.shape.out_width);
      layers_.push_back({p, 0});
    } else {
      STD_TORCH_CHECK(row.kind == kPool, "plan: expected 0 to 2 as kind, got ", row.kind);
      STD_TORCH_CHECK(x.is_channels_last(), "x: expected a dense channels_last tensor");
      out = result(x.channels, 1, 1);
      layers_.push_back({cpu::PoolInferenceParams{x.dtype, x.images, x.channels, x.pixels(), x.data, nullptr}, 0});
    }
    out.bytes();  // refuses what is too large to count
    inputs_.push_back(out);
  }

  static void check_added(const cpu::Activations& added, const cpu::Activations& out) {
    STD_TORCH_CHECK(added.has_size_of(out) && added.is_channels_last(),
                    "plan: expected a residual of the size of the result, in channels_last");
  }

  template <class Params>
  void run_layer(Params& params, size_t i, void* target) {
    params.x = inputs_[i].data;
    params.out = target;
    if constexpr (std::is_same_v<Params, cpu::ConvInferenceParams>) {
      const int64_t residual = layers_[i].residual;
      params.residual = residual == 0 ? nullptr : inputs_[i + 1 - residual].data;
      cpu::conv_inference(params);
    } else if constexpr (std::is_same_v<Params, cpu::MBConvInferenceParams>) {
      cpu::mbconv_inference(params);
    } else {
      cpu::pool_inference(params);
    }
  }

  std::vector<Layer> layers_;
  std::vector<cpu::Activations> inputs_;  // of every layer; then the result
};

Tensor network_inference(const Tensor& x, const Tensor& weights, const Tensor& plan, int64_t classes) {
  Network network(x, weights, plan);
  const cpu::Activations& result = network.result();
  STD_TORCH_CHECK(result.channels == classes && result.pixels() == 1, "plan: expected a single pixel of ", classes,
                  " channels as the result, got ", result.pixels(), " of ", result.channels);
  Tensor out = torch::stable::empty({result.images, classes}, x.scalar_type(), std::nullopt, x.device());
  network.run(out.mutable_data_ptr());
  return out;
}

}  // namespace
}  // namespace effnet_kernels

STABLE_TORCH_LIBRARY_IMPL(effnet_kernels, CPU, m) {
  m.impl("network_inference", TORCH_BOX(&effnet_kernels::network_inference));
}
