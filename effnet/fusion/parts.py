"""Which modules a fused forward may read instead of calling: convolutions, BatchNorms, activations, squeeze-and-excite.

Every table is by exact type, since a subclass may compute something else; the libraries' files add their own types. The
same functions say why a module is left alone when a model is fused, and guard every forward pass after that.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from effnet_kernels.arguments import KERNEL_SIZES, STRIDES, Padding, SqueezeExcite
from effnet_kernels.nn import has_hooks

ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
}
GATES: dict[type[nn.Module], str] = {nn.Sigmoid: "sigmoid", nn.Hardsigmoid: "hardsigmoid"}

SAME: Padding = (-1, -1, -1, -1)
"""TensorFlow's SAME padding, which depends on the size of what is padded."""


def _own_padding(conv: nn.Conv2d) -> Padding | str:
    if conv.padding_mode != "zeros":
        return f"padding_mode {conv.padding_mode!r}"
    if isinstance(conv.padding, str):
        return f"padding {conv.padding!r}"
    rows, columns = conv.padding
    return (rows, rows, columns, columns)


PADDINGS: dict[type[nn.Module], Callable[[Any], Padding | str]] = {nn.Conv2d: _own_padding}
"""Of a convolution (top, bottom, left, right), SAME, or why it is neither."""


def _no_activation(_bn: nn.BatchNorm2d) -> nn.Module | None:
    return None


NORMS: dict[type[nn.Module], Callable[[Any], nn.Module | str | None]] = {nn.BatchNorm2d: _no_activation}
"""Of a BatchNorm the activation inside it, None where it has none, or why it computes something else."""


class Excitation(NamedTuple):
    """Squeeze-and-excite: two biased 1×1 convolutions, what is between and after them, and how to call it as it is."""

    reduce: Any
    activation: nn.Module
    expand: Any
    gate: nn.Module | str
    call: Callable[[Tensor], Tensor]

    def weights(self) -> SqueezeExcite:
        reduce, expand = self.reduce, self.expand
        return SqueezeExcite(reduce.weight, reduce.bias, expand.weight, expand.bias)

    def gate_name(self) -> str:
        return self.gate if isinstance(self.gate, str) else GATES[type(self.gate)]

    def modules(self) -> list[nn.Module]:
        """What a fused call does not call."""
        parts = [self.call, self.reduce, self.activation, self.expand, self.gate]
        return [part for part in parts if isinstance(part, nn.Module)]


EXCITATIONS: dict[type[nn.Module], Callable[[Any], Excitation | str]] = {}
"""Of a squeeze-and-excite module its parts, or why it computes something else."""

DROPS: dict[type[nn.Module], Callable[[Any], bool]] = {nn.Identity: lambda drop: False}
"""Of a drop-connect module whether it drops in its current mode."""


def global_hooks() -> bool:
    """Whether hooks are registered that every module's call runs."""
    return bool(
        nn_module._global_forward_hooks
        or nn_module._global_forward_pre_hooks
        or nn_module._global_backward_hooks
        or nn_module._global_backward_pre_hooks
    )


def why_called(module: nn.Module) -> str | None:
    """Why a call of ``module`` may do more than its class's forward, or None."""
    if has_hooks(module):
        return "has hooks"
    return "has a forward of its own" if "forward" in module.__dict__ else None


def why_not_depthwise(conv: Any) -> str | None:
    """Why ``conv`` is no depthwise convolution of the operators, or None where it is one."""
    padding_of = PADDINGS.get(type(conv))
    if padding_of is None:
        return f"{type(conv).__name__} is not a convolution that is known"
    out_channels, multiplied, rows, columns = conv.weight.shape
    if conv.groups != out_channels or multiplied != 1:
        return f"{conv.groups} groups for {out_channels} channels"
    if conv.bias is not None:
        return "has a bias"
    if rows != columns or rows not in KERNEL_SIZES:
        return f"kernel {rows}×{columns}"
    vertical, horizontal = conv.stride
    if vertical != horizontal or vertical not in STRIDES:
        return f"stride {vertical}×{horizontal}"
    if tuple(conv.dilation) != (1, 1):
        return f"dilation {tuple(conv.dilation)}"
    padding = padding_of(conv)
    if isinstance(padding, str):
        return padding
    if padding != SAME and not all(0 <= p < rows for p in padding):
        return f"padding {padding}"
    return why_called(conv)


def is_pointwise(conv: Any) -> bool:
    """Whether ``conv`` is a 1×1 convolution without bias, a product of the pixels."""
    padding_of = PADDINGS.get(type(conv))
    if padding_of is None or conv.bias is not None or conv.groups != 1:
        return False
    if tuple(conv.weight.shape[2:]) != (1, 1) or tuple(conv.stride) != (1, 1):
        return False
    return padding_of(conv) in ((0, 0, 0, 0), SAME) and why_called(conv) is None


def why_not_activation(activation: nn.Module) -> str | None:
    if type(activation) not in ACTIVATIONS:
        return f"activation {type(activation).__name__}"
    return why_called(activation)


def why_not_norm(bn: Any) -> str | None:
    """Why ``bn`` is no BatchNorm of the operators (with what is inside it), or None where it is one."""
    activation_of = NORMS.get(type(bn))
    if activation_of is None:
        return f"{type(bn).__name__} is not a BatchNorm that is known"
    activation = activation_of(bn)
    if isinstance(activation, str):
        return activation
    inside = None if activation is None else why_not_activation(activation)
    return why_called(bn) or inside


def why_not_excitation(se: Excitation) -> str | None:
    """Why ``se`` is no squeeze-and-excite of the operators, or None where it is one."""
    for conv in (se.reduce, se.expand):
        why = _why_not_excitation_layer(conv)
        if why is not None:
            return why
    if isinstance(se.gate, nn.Module):
        if type(se.gate) not in GATES:
            return f"gate {type(se.gate).__name__}"
        if why_called(se.gate) is not None:
            return f"gate {why_called(se.gate)}"
    return why_not_activation(se.activation)


def _why_not_excitation_layer(conv: Any) -> str | None:
    padding_of = PADDINGS.get(type(conv))
    if padding_of is None:
        return f"layer {type(conv).__name__}"
    if conv.bias is None:
        return "layer without bias"
    one = tuple(conv.weight.shape[2:]) == (1, 1) and tuple(conv.stride) == (1, 1)
    if not one or conv.groups != 1 or padding_of(conv) not in ((0, 0, 0, 0), SAME):
        return "layer that is not a 1×1 convolution"
    return why_called(conv)
