"""``batch_norm_act``: act(BN(x)) · keep[n] (+ residual) in two passes forward and two backward."""

from typing import Any

import torch
from torch import Tensor

from effnet_kernels import reference
from effnet_kernels.activations import CODES
from effnet_kernels.arguments import (
    BatchNorm,
    check_activation,
    check_activations_tensor,
    check_batch_norm,
    check_strided,
    check_vector,
)
from effnet_kernels.backend import backend_for
from effnet_kernels.ops.registration import operators, register_backward, register_differentiable
from effnet_kernels.ops.running_stats import affine, constant_statistics, update_running_stats
from effnet_kernels.tensors import autocast, dense, dense_like, statistics_dtype


def batch_norm_act(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    *,
    training: bool = True,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    activation: str = "silu",
    keep: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """BatchNorm, activation, drop-connect's scale and the residual addition in one operator.

    Computes, per channel c, with the batch's mean μ and biased variance σ² in training and ``mean``, ``var`` else::

        out = act(γ (x − μ) / √(σ² + eps) + β) · keep[n] + residual

    Backward, with dv = grad · keep[n] · act'(v), x̂ = (x − μ) / √(σ² + eps) and M = N·H·W::

        dβ = Σ dv        dγ = Σ dv x̂        dx = γ / √(σ² + eps) · (dv − dβ/M − x̂ dγ/M)

    (dx = γ / √(σ² + eps) · dv where ``training`` is False). Saved for backward: ``x`` and per-channel vectors.
    Memory traffic in units of x: 2 reads + 1 write forward (1 read in inference), 4 reads + 1 write backward.

    Args:
        x: (N, C, H, W), float32, float16, bfloat16 or float64; NCHW or channels_last, returned in the same.
        gamma, beta: (C,) scale and shift, or None for 1 and 0.
        mean, var: (C,) running statistics; updated in place in training (``var`` with the unbiased variance), read
            otherwise; None where none are kept.
        training: take the statistics from the batch.
        momentum: weight of the batch in the running statistics; a number, or a tensor of no dimensions.
        eps: added to the variance.
        activation: ``identity``, ``relu``, ``relu6``, ``silu`` or ``hardswish``.
        keep: (N,) factor per sample, drop-connect's 0 or 1/survival; a constant to autograd.
        residual: same shape as ``x``, added last.

    Raises:
        TypeError: a tensor has an unsupported dtype.
        ValueError: an argument has the wrong shape, device or value, or there is one value per channel in training.

    Source: Ioffe and Szegedy 2015 (arXiv 1502.03167), algorithm 1; drop-connect as stochastic depth,
    Huang et al. 2016 (arXiv 1603.09382), section 3.
    """
    check_activations_tensor(x, "x")
    check_activation(activation)
    x = autocast(x)
    channels = x.shape[1]
    count = x.shape[0] * x.shape[2] * x.shape[3]
    bn = BatchNorm(gamma, beta, mean, var, training, momentum, eps)
    check_batch_norm(bn, count, channels, x)
    if keep is not None:
        check_vector(keep, "keep", x.shape[0], x)
        if keep.requires_grad:
            raise ValueError("keep: expected a constant, got a tensor that requires grad")
    if residual is not None:
        check_strided(residual, "residual")
        residual = autocast(residual)
        _check_residual(residual, x)
    backend = backend_for(x.device, x.dtype)
    if backend == "reference":
        return reference.batch_norm_act(x, bn, activation, keep, residual)
    x = dense(x)
    if residual is not None:
        residual = dense_like(residual, x)
    out, batch_mean, batch_var = operators(backend).batch_norm_act(
        x, *affine(bn, channels, x), *constant_statistics(bn), keep, residual, eps, CODES[activation]
    )
    update_running_stats(backend, bn, batch_mean, batch_var, count)
    return out


def _check_residual(residual: Tensor, x: Tensor) -> None:
    if residual.shape != x.shape:
        raise ValueError(f"residual: expected the shape of x, {tuple(x.shape)}, got {tuple(residual.shape)}")
    if residual.dtype != x.dtype:
        raise TypeError(f"residual: expected the dtype of x, {x.dtype}, got {residual.dtype}")
    if residual.device != x.device:
        raise ValueError(f"residual: expected device {x.device}, got {residual.device}")


def _fake(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    keep: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty(x.shape[1] if mean is None else 0, dtype=statistics_dtype(x))
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, gamma, beta, mean, var, keep, _residual, ctx.eps, ctx.activation = inputs
    _out, batch_mean, batch_var = output
    ctx.mark_non_differentiable(batch_mean, batch_var)
    ctx.training = mean is None
    ctx.save_for_backward(x, gamma, beta, *((batch_mean, batch_var) if ctx.training else (mean, var)), keep)


def _backward(namespace: Any, ctx: Any, grad: Tensor, *_unused: None) -> tuple[Tensor | None, ...]:
    x, gamma, beta, mean, var, keep = ctx.saved_tensors
    needs_x, needs_gamma, needs_beta = ctx.needs_input_grad[:3]
    dx = dgamma = dbeta = None
    if needs_x or needs_gamma or needs_beta:
        dx, dgamma, dbeta = namespace.batch_norm_act_backward(
            dense_like(grad, x), x, gamma, beta, mean, var, keep, ctx.training, ctx.eps, ctx.activation
        )
    dresidual = grad if ctx.needs_input_grad[6] else None
    return dx, dgamma, dbeta, None, None, None, dresidual, None, None


def _fake_backward(
    grad: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, *_settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(gamma), torch.empty_like(beta)


register_differentiable("batch_norm_act", _fake, _setup_context, _backward)
register_backward("batch_norm_act_backward", _fake_backward)
