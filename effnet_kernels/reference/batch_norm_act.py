"""act(BN(x)) · keep[n] (+ residual)."""

import torch
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
    return act_keep_residual(batch_norm(x, bn), activation, keep, residual)


def act_keep_residual(v: Tensor, activation: str, keep: Tensor | None, residual: Tensor | None) -> Tensor:
    """act(v) · keep[n] (+ residual)."""
    out = ACTIVATIONS[activation](v)
    if keep is not None:
        out = out * keep.to(out.dtype).view(-1, 1, 1, 1)
    return out if residual is None else out + residual


def batch_norm(x: Tensor, bn: BatchNorm) -> Tensor:
    """``torch.nn.functional.batch_norm``, whose momentum is a number, for one that may be a tensor."""
    if not isinstance(bn.momentum, Tensor):
        return F.batch_norm(x, bn.mean, bn.var, bn.gamma, bn.beta, bn.training, bn.momentum, bn.eps)
    if not bn.training or bn.mean is None or bn.var is None:
        return F.batch_norm(x, bn.mean, bn.var, bn.gamma, bn.beta, bn.training, 0.0, bn.eps)
    # With momentum 1 running statistics become the batch's.
    mean, var = torch.zeros_like(bn.mean), torch.zeros_like(bn.var)
    v = F.batch_norm(x, mean, var, bn.gamma, bn.beta, True, 1.0, bn.eps)
    if x.numel():
        move_running_stats(bn.mean, bn.var, mean, var, bn.momentum)
    return v


def move_running_stats(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, unbiased_var: Tensor, momentum: Tensor
) -> None:
    """running ← (1 − momentum) · running + momentum · batch, in place, for a momentum that is a tensor."""
    for running, batch in ((running_mean, mean), (running_var, unbiased_var)):
        running.lerp_(batch.to(running.dtype), momentum.to(running.dtype))
