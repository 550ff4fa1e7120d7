"""What a chain of layers is cut into: one operator for several modules, or the call of one module.

A segment is made for a single forward pass, from the modules as they are at that moment. Where an operator would not
compute what the modules' own calls compute (another dtype, autocast), the modules are called.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import effnet_kernels as ek
from effnet.fusion.parts import PADDINGS, SAME, Excitation
from effnet_kernels.arguments import DTYPES, Padding, same_padding
from effnet_kernels.nn import batch_norm_act, batch_norm_arguments, count_batch


class Segment:
    """``operator``, and the calls it stands for."""

    operator: str | None = None

    def __init__(self, calls: Sequence[Callable[[Tensor], Tensor]], modules: Sequence[nn.Module]) -> None:
        self.calls = calls
        self.modules = modules

    def serves(self, x: Tensor) -> bool:
        """Whether the operator computes for ``x`` what the calls would."""
        return False

    def fused(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        if self.serves(x):
            return self.fused(x)
        for call in self.calls:
            x = call(x)
        return x


class Call(Segment):
    """A module's own call."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__((module,), ())


class Norm(Segment):
    """act(BN(x)), and in a block's last place · keep[n] + residual."""

    operator = "batch_norm_act"

    def __init__(self, bn: nn.BatchNorm2d, activation: str, modules: Sequence[nn.Module], calls: int) -> None:
        super().__init__(modules[:calls], modules)
        self.bn = bn
        self.activation = activation

    def serves(self, x: Tensor) -> bool:
        return _is_map(x) and autocast_keeps(x) and normalises(self.bn, x)

    def fused(self, x: Tensor, keep: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        return batch_norm_act(x, self.bn, self.activation, keep, residual, fused=True)


class Excite(Segment):
    """x · gate(W2 act(W1 mean(x) + b1) + b2)."""

    operator = "squeeze_excite"

    def __init__(self, se: Excitation, activation: str) -> None:
        super().__init__((se.call,), se.modules())
        self.se = se
        self.activation = activation

    def serves(self, x: Tensor) -> bool:
        return _is_map(x) and autocast_keeps(x) and _excites(self.se, x)

    def fused(self, x: Tensor) -> Tensor:
        return ek.squeeze_excite(x, *self.se.weights(), activation=self.activation, gate=self.se.gate_name())


class Core(Segment):
    """SE(act(BN2(dwconv(act(BN1(u)))))), with or without BN1 and SE."""

    def __init__(self, conv: nn.Conv2d, norm1: Norm | None, norm2: Norm, excite: Excite | None) -> None:
        before = [] if norm1 is None else [norm1]
        after = [] if excite is None else [excite]
        calls = [c for s in before for c in s.calls] + [conv] + [c for s in (norm2, *after) for c in s.calls]
        modules = [m for s in before for m in s.modules] + [conv] + [m for s in (norm2, *after) for m in s.modules]
        super().__init__(calls, modules)
        self.operator = "mbconv_core" if before or after else "depthwise_conv_bn_act"
        self.conv = conv
        self.norm1 = norm1
        self.norm2 = norm2
        self.excite = excite

    def serves(self, x: Tensor) -> bool:
        if not (_is_map(x) and _converts(self.conv, x) and normalises(self.norm2.bn, x)):
            return False
        if self.norm1 is not None and not self.norm1.serves(x):
            return False
        return self.excite is None or _excites(self.excite.se, x)

    def fused(self, x: Tensor) -> Tensor:
        out = ek.mbconv_core(x, self.conv.weight, **self.arguments(x))
        count_batch(*self.norms())
        return out

    def norms(self) -> list[nn.BatchNorm2d]:
        return [norm.bn for norm in (self.norm1, self.norm2) if norm is not None]

    def arguments(self, x: Tensor) -> dict[str, Any]:
        """What ``mbconv_core`` and ``mbconv`` take beside their input and weights; ``x`` has the input's size."""
        norm1, excite = self.norm1, self.excite
        return {
            "bn2": batch_norm_arguments(self.norm2.bn),
            "bn1": None if norm1 is None else batch_norm_arguments(norm1.bn),
            "se": None if excite is None else excite.se.weights(),
            "stride": self.conv.stride[0],
            "padding": explicit_padding(self.conv, x),
            "activation": self.norm2.activation,
            "gate": "sigmoid" if excite is None else excite.se.gate_name(),
        }


class MBConv(Segment):
    """A core between its 1×1 convolutions."""

    operator = "mbconv"

    def __init__(self, expand: nn.Conv2d | None, core: Core, project: nn.Conv2d) -> None:
        before = [] if expand is None else [expand]
        super().__init__([*before, *core.calls, project], [*before, *core.modules, project])
        self.expand = expand
        self.core = core
        self.project = project

    def serves(self, x: Tensor) -> bool:
        core, expand = self.core, self.expand
        if not (_is_map(x) and _converts(core.conv, x) and _converts(self.project, x)):
            return False
        if expand is not None and not _converts(expand, x):
            return False
        if not all(normalises(bn, x) for bn in core.norms()):
            return False
        return core.excite is None or _excites(core.excite.se, x)

    def fused(self, x: Tensor) -> Tensor:
        core, w_expand = self.core, None if self.expand is None else self.expand.weight
        out = ek.mbconv(x, core.conv.weight, self.project.weight, w_expand=w_expand, **core.arguments(x))
        count_batch(*core.norms())
        return out


def explicit_padding(conv: nn.Conv2d, x: Tensor) -> Padding:
    """(top, bottom, left, right) for an input of the height and width of ``x``."""
    padding = PADDINGS[type(conv)](conv)
    assert not isinstance(padding, str)
    if padding == SAME:
        return same_padding(x.shape[2], x.shape[3], conv.weight.shape[2], conv.stride[0])
    return padding


def is_plain(x: object) -> bool:
    """Whether ``x`` is a tensor of no class of its own; to torch.compile it looks like one where it is not."""
    return type(x) in (Tensor, nn.Parameter) or torch.compiler.is_compiling()


def _is_map(x: Tensor) -> bool:
    return is_plain(x) and x.dim() == 4 and x.dtype in DTYPES and x.layout == torch.strided


def _casts(x: Tensor) -> bool:
    device = x.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def autocast_keeps(x: Tensor) -> bool:
    """Whether the operators' rule for autocast leaves ``x`` as it is; a BatchNorm's own call would."""
    return x.dtype == torch.float64 or not _casts(x) or x.dtype == torch.get_autocast_dtype(x.device.type)


def _converts(conv: nn.Module, x: Tensor) -> bool:
    """Whether a call of ``conv`` accepts the dtype of ``x``."""
    return conv.weight.dtype == x.dtype or (x.dtype != torch.float64 and _casts(x))


def normalises(bn: nn.BatchNorm2d, x: Tensor) -> bool:
    """Whether the parameters and statistics of ``bn`` are float32 or, in float64, of that dtype."""
    expected = torch.float64 if x.dtype == torch.float64 else torch.float32
    tensors = (bn.weight, bn.bias, bn.running_mean, bn.running_var)
    return all(t is None or t.dtype == expected for t in tensors)


def _excites(se: Excitation, x: Tensor) -> bool:
    return _converts(se.reduce, x) and _converts(se.expand, x)
