"""The BatchNorm tensors of a call as the compiled operators take them, and the update of running statistics."""

from torch import Tensor

from effnet_kernels.arguments import BatchNorm
from effnet_kernels.ops.registration import operators, register
from effnet_kernels.reference.batch_norm_act import move_running_stats
from effnet_kernels.tensors import statistics_dtype

register("update_running_stats_", lambda running_mean, running_var, mean, var, count, momentum: None)


def affine(bn: BatchNorm, channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """γ and β, with ones and zeros where ``affine=False`` left them out."""
    dtype = statistics_dtype(like)
    gamma = like.new_ones(channels, dtype=dtype) if bn.gamma is None else bn.gamma
    beta = like.new_zeros(channels, dtype=dtype) if bn.beta is None else bn.beta
    return gamma, beta


def constant_statistics(bn: BatchNorm) -> tuple[Tensor | None, Tensor | None]:
    """Mean and variance where they are constants (inference), else (None, None): to be taken from the batch."""
    return (None, None) if bn.training else (bn.mean, bn.var)


def update_running_stats(backend: str, bn: BatchNorm, mean: Tensor, var: Tensor, count: int) -> None:
    """Move the running statistics toward the batch's, as PyTorch does, in training and where there are any.

    running ← (1 − momentum) · running + momentum · batch, with the unbiased variance var · count / (count − 1).
    An empty batch leaves them as they are.
    """
    if not bn.training or bn.mean is None or bn.var is None or count == 0:
        return
    if isinstance(bn.momentum, Tensor):
        move_running_stats(bn.mean, bn.var, mean, var * (count / (count - 1)), bn.momentum)
    else:
        operators(backend).update_running_stats_(bn.mean, bn.var, mean, var, count, bn.momentum)
