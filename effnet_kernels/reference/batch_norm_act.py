"""act(BN(x)) · keep[n] (+ residual)."""

import torch.nn.functional as F
from torch import Tensor

from effnet_kernels.activations import ACTIVATIONS
from effnet_kernels.arguments import BatchNorm


def batch_norm_act(
    x: Tensor,
    bn: BatchNorm,
    activation: str = "silu",
    keep: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """act(BN(x)) · keep[n] (+ residual); running statistics are updated in place when ``bn.training``."""
    v = F.batch_norm(x, bn.mean, bn.var, bn.gamma, bn.beta, bn.training, bn.momentum, bn.eps)
    out = ACTIVATIONS[activation](v)
    if keep is not None:
        out = out * keep.to(out.dtype).view(-1, 1, 1, 1)
    return out if residual is None else out + residual
