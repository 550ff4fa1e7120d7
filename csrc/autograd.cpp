// Backward of the operators of ops.cpp at autograd's dispatch key: what effnet_kernels/ops/registration.py does in Python
// where this library cannot be loaded. It needs more of torch than the stable ABI has, so it serves one version of torch.
//
// One rule for all operators, by the names of their schemas. An argument of `op_backward` is
//   grad           the gradient of op's first result, the only one that has one, in the dtype and layout of what follows
//   training, …1   whether `mean` (`mean1`, …) was not given, and so came from the batch
//   needs_dx       whether autograd asks for the gradient of x
//   any other      op's argument of that name, else its result; of a BatchNorm's statistics whichever was given
// and its result `dx` is the gradient of op's argument x. `residual` is added last: its gradient is `grad`.
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <string>
#include <vector>

namespace effnet_kernels {
namespace {

using at::Tensor;
using c10::IValue;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using torch::jit::Stack;

constexpr const char* kOperators[] = {"batch_norm_act", "depthwise_conv_bn_act", "squeeze_excite",
                                      "mbconv_core",    "pointwise_conv",        "mbconv"};

constexpr int kNone = -1;

int place_of(const std::vector<c10::Argument>& arguments, const std::string& name) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i].name() == name) return int(i);
  }
  return kNone;
}

bool is_tensor(const c10::Argument& argument) {
  const c10::TypePtr& type = argument.type();
  return type->kind() == c10::TypeKind::TensorType || type->isSubtypeOf(*c10::OptionalType::ofTensor());
}

// Where an argument of the backward operator comes from: places among op's arguments and results.
struct Source {
  enum Kind { gradient, saved, setting, training, needs } kind;
  int argument = kNone, result = kNone;
  int given_with = kNone;  // a result counts where this argument was given
};

// What is known of an operator before any call.
struct Rule {
  c10::OperatorHandle backward;
  size_t arguments, results;
  std::vector<Source> sources;      // one for every argument of `backward`
  std::vector<int> differentiated;  // the argument whose gradient a result of `backward` is
  int residual;
  bool channels_last;

  static Rule of(const std::string& name) {
    const auto find = [](const std::string& op) {
      return c10::Dispatcher::singleton().findSchemaOrThrow(("effnet_kernels::" + op).c_str(), "");
    };
    const c10::OperatorHandle backward = find(name + "_backward");
    const c10::FunctionSchema& schema = find(name).schema();
    Rule rule{backward,
              schema.arguments().size(),
              schema.returns().size(),
              {},
              {},
              place_of(schema.arguments(), "residual"),
              // Their products take pixels as rows.
              name == "mbconv" || name == "pointwise_conv"};
    for (const c10::Argument& argument : backward.schema().arguments()) {
      rule.sources.push_back(source_of(argument, schema));
    }
    for (const c10::Argument& result : backward.schema().returns()) {
      rule.differentiated.push_back(place_of(schema.arguments(), result.name().substr(1)));
    }
    return rule;
  }

  static Source source_of(const c10::Argument& argument, const c10::FunctionSchema& forward) {
    const auto given = [&](const std::string& name) { return place_of(forward.arguments(), name); };
    const std::string& name = argument.name();
    if (name == "grad") return {Source::gradient};
    if (name.starts_with("needs_d")) return {Source::needs, given(name.substr(7))};
    if (name.starts_with("training")) {
      const std::string which = name.substr(8);
      return {Source::training, given("mean" + which), kNone, given("gamma" + which)};
    }
    Source source{is_tensor(argument) ? Source::saved : Source::setting, given(name),
                  place_of(forward.returns(), name)};
    TORCH_INTERNAL_ASSERT(source.argument != kNone || source.result != kNone, name);
    if (source.result == kNone) return source;
    if (source.argument != kNone) {
      source.given_with = given("gamma" + name.substr(name.find_last_not_of("0123456789") + 1));
    } else if (argument.type()->kind() == c10::TypeKind::OptionalType) {
      source.given_with = given("w1");  // what squeeze-and-excite leaves
    }
    return source;
  }
};

template <int I>
const Rule& rule() {
  static const Rule rule = Rule::of(kOperators[I]);
  return rule;
}

// The tensor of an argument, undefined where none was given.
Tensor tensor_of(const IValue& value) { return value.isTensor() ? value.toTensor() : Tensor(); }

// Bit i for every argument i that is a tensor: these are autograd's variables, in this order.
class Variables {
 public:
  explicit Variables(int64_t bits) : bits_(uint64_t(bits)) {}
  static Variables of(c10::ArrayRef<IValue> arguments) {
    uint64_t bits = 0;
    for (size_t i = 0; i < arguments.size(); ++i) bits |= uint64_t(tensor_of(arguments[i]).defined()) << i;
    return Variables(int64_t(bits));
  }

  int64_t bits() const { return int64_t(bits_); }
  int count() const { return std::popcount(bits_); }
  bool has(int argument) const { return argument != kNone && (bits_ >> argument & 1); }
  int place(int argument) const { return std::popcount(bits_ & ((uint64_t(1) << argument) - 1)); }

 private:
  uint64_t bits_;
};

// A call of an operator: its arguments, and the stack that they are on, later its results.
struct Call {
  const c10::OperatorHandle& op;
  c10::DispatchKeySet below;
  Stack& stack;
  std::vector<IValue> arguments;

  void run() const {
    at::AutoDispatchBelowAutograd guard;
    op.redispatchBoxed(below, &stack);
  }
};

// As effnet_kernels/transforms.py says it: under a transform, whose rules the forward behind this had not.
void check_gradient(const char* name, const Tensor& grad) {
  const char* transform = nullptr;
  if (grad.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Batched)) {
    transform = "vmap";
  } else if (c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode)) {
    transform = "torch.func transforms (grad, vmap, jvp and others)";
  } else if (torch::autograd::ForwardADLevel::try_get_by_idx(0)) {
    transform = "forward-mode differentiation";
  }
  TORCH_CHECK(transform == nullptr, "effnet_kernels::", name, ": its backward does not run under ", transform,
              " (is_grads_batched is vmap): call the forward inside the transform too, or use the reference backend "
              "(effnet_kernels.set_backend('reference'))");
}

// `grad` in the dtype and layout of `like`; effnet_kernels/tensors.py says which layout that is.
Tensor dense_like(const Tensor& grad, const Tensor& like, bool channels_last) {
  const bool single_pixels = like.sym_size(2) == 1 && like.sym_size(3) == 1;
  const bool nchw = like.is_contiguous() && !single_pixels && !channels_last;
  return grad.to(like.scalar_type()).contiguous(nchw ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast);
}

template <int I>
struct Differentiable : torch::autograd::Function<Differentiable<I>> {
  static variable_list forward(AutogradContext* ctx, const Call* call, at::TensorList /*variables*/) {
    call->run();
    save(ctx, *call);
    return {call->stack[call->stack.size() - rule<I>().results].toTensor()};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Rule& r = rule<I>();
    const auto settings = ctx->saved_data["settings"].toList();
    const Variables variables(settings.get(0).toInt());
    variable_list gradients(1 + variables.count());
    const Tensor& grad = grads[0];
    if (!grad.defined()) return gradients;
    check_gradient(kOperators[I], grad);
    const auto needs = [&](int argument) {
      return variables.has(argument) && ctx->needs_input_grad(variables.place(argument));
    };
    if (r.residual != kNone && needs(r.residual)) gradients[1 + variables.place(r.residual)] = grad;
    if (std::none_of(r.differentiated.begin(), r.differentiated.end(), needs)) return gradients;

    Stack stack = arguments(ctx->get_saved_variables(), settings, grad, needs);
    run(stack);
    for (size_t i = 0; i < stack.size(); ++i) {
      const int argument = r.differentiated[i];
      if (needs(argument)) gradients[1 + variables.place(argument)] = std::move(stack[i]).toTensor();
    }
    return gradients;
  }

 private:
  static void save(AutogradContext* ctx, const Call& call) {
    const Rule& r = rule<I>();
    const IValue* const results = &call.stack[call.stack.size() - r.results];
    const Variables variables = Variables::of(call.arguments);
    variable_list tensors;
    // A list, into which compiled autograd can look, unlike into a tuple.
    c10::impl::GenericList settings(c10::AnyType::get());
    settings.push_back(variables.bits());
    for (const Source& s : r.sources) {
      const bool given = variables.has(s.argument), counts = s.given_with == kNone || variables.has(s.given_with);
      if (s.kind == Source::setting) settings.push_back(call.arguments[s.argument]);
      if (s.kind == Source::training) settings.push_back(counts && !given);
      if (s.kind != Source::saved) continue;
      if (given || s.result == kNone) {
        tensors.push_back(tensor_of(call.arguments[s.argument]));
      } else {
        tensors.push_back(counts ? results[s.result].toTensor() : Tensor());
      }
    }
    ctx->set_materialize_grads(false);
    ctx->saved_data["settings"] = std::move(settings);
    ctx->save_for_backward(std::move(tensors));
  }

  template <class Needs>
  static Stack arguments(const variable_list& saved, const c10::impl::GenericList& settings, const Tensor& grad,
                         Needs needs) {
    const Rule& r = rule<I>();
    Stack stack;
    stack.reserve(r.sources.size());
    size_t tensor = 0, setting = 1;
    for (const Source& s : r.sources) {
      switch (s.kind) {
        case Source::gradient:
          stack.emplace_back(dense_like(grad, saved[0], r.channels_last));
          break;
        case Source::needs:
          stack.emplace_back(needs(s.argument));
          break;
        case Source::saved: {
          const Tensor& t = saved[tensor++];
          stack.push_back(t.defined() ? IValue(t) : IValue());
          break;
        }
        default:
          stack.push_back(settings.get(setting++));
      }
    }
    return stack;
  }

  static void run(Stack& stack) {
    // Where a gradient of a gradient is asked for, the backward operator's own rule refuses it.
    if (at::GradMode::is_enabled()) return rule<I>().backward.callBoxed(stack);
    at::AutoDispatchBelowAutograd guard;
    rule<I>().backward.callBoxed(stack);
  }
};

bool requires_grad(const IValue& value) {
  const Tensor t = tensor_of(value);
  return t.defined() && t.requires_grad();
}

template <int I>
void autograd_kernel(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  const auto arguments = torch::jit::last(*stack, rule<I>().arguments);
  Call call{op, keys & c10::after_autograd_keyset, *stack, {}};
  if (!at::GradMode::is_enabled() || std::none_of(arguments.begin(), arguments.end(), requires_grad)) return call.run();
  call.arguments = arguments.vec();
  variable_list variables;
  for (const IValue& value : call.arguments) {
    if (Tensor t = tensor_of(value); t.defined()) variables.push_back(std::move(t));
  }
  const variable_list out = Differentiable<I>::apply(static_cast<const Call*>(&call), at::TensorList(variables));
  (*stack)[stack->size() - rule<I>().results] = out[0];
}

template <int I = 0>
void register_kernels(torch::Library& m) {
  m.impl(kOperators[I], torch::CppFunction::makeFromBoxedFunction<&autograd_kernel<I>>());
  if constexpr (I + 1 < int(std::size(kOperators))) register_kernels<I + 1>(m);
}

TORCH_LIBRARY_IMPL(effnet_kernels, Autograd, m) { register_kernels(m); }

}  // namespace
}  // namespace effnet_kernels
