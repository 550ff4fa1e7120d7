"""Activations and gates: their names, the codes the compiled operators use, and their definition in PyTorch."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "identity": lambda v: v,
        "relu": F.relu,
        "relu6": F.relu6,
        "silu": F.silu,
        "hardswish": F.hardswish,
    }
)
"""What follows a BatchNorm, by name."""

GATES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({"sigmoid": F.sigmoid, "hardsigmoid": F.hardsigmoid})
"""What turns the squeeze-and-excite logits into scales, by name."""

# The order of `enum class Activation` in csrc/common/activation.h.
CODES: Mapping[str, int] = MappingProxyType({name: code for code, name in enumerate((*ACTIVATIONS, *GATES))})
