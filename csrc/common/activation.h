// Activations and gates by code. The codes are part of the operators' schemas (effnet_kernels/activations.py).
#pragma once

namespace effnet_kernels {

enum class Activation { identity, relu, relu6, silu, hardswish, sigmoid, hardsigmoid };

inline constexpr int kActivations = 5;  // identity … hardswish follow a BatchNorm; the last two are gates

}  // namespace effnet_kernels
