"""x · gate(W2 act(W1 mean(x) + b1) + b2)."""

from torch import Tensor

from effnet_kernels.activations import ACTIVATIONS, GATES
from effnet_kernels.arguments import SqueezeExcite


def excitation(x: Tensor, se: SqueezeExcite, activation: str = "silu", gate: str = "sigmoid") -> Tensor:
    """gate(W2 act(W1 mean(x) + b1) + b2) of (N, C), the mean over H and W."""
    w1, b1, w2, b2 = (t.flatten(1) if t.dim() > 1 else t for t in (p.to(x.dtype) for p in se))
    hidden = ACTIVATIONS[activation](x.mean((2, 3)) @ w1.t() + b1)
    return GATES[gate](hidden @ w2.t() + b2)


def squeeze_excite(x: Tensor, se: SqueezeExcite, activation: str = "silu", gate: str = "sigmoid") -> Tensor:
    """x · gate(W2 act(W1 mean(x) + b1) + b2), the mean over H and W."""
    return x * excitation(x, se, activation, gate)[:, :, None, None]
