"""BatchNorm over the batches of several processes: their moments are merged between the passes.

With the merged mean and variance as constants, every operator runs as in inference. What they depend on is added in
backward: with v = γ r (x − μ) + β, r = 1 / √(σ² + eps) and M values per channel in all processes together,

    ∂L/∂μ = −γ r dβ        ∂L/∂σ² = −½ γ r² dγ        dx += (∂L/∂μ + 2 (x − μ) ∂L/∂σ²) / M

where ∂L/∂μ and ∂L/∂σ² are summed over the processes, and dγ and dβ are a process's own.

Source: Ioffe and Szegedy 2015 (arXiv 1502.03167), algorithm 1, over a batch in parts; the parts' moments are merged
after Chan, Golub and LeVeque 1979.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from effnet_kernels import ops, reference
from effnet_kernels.activations import CODES
from effnet_kernels.arguments import BatchNorm, SqueezeExcite, check_activations_tensor, check_batch_norm
from effnet_kernels.backend import backend_for
from effnet_kernels.ops.mbconv_core import prepare
from effnet_kernels.ops.registration import operators
from effnet_kernels.ops.running_stats import affine
from effnet_kernels.tensors import autocast, dense, dense_like, statistics_dtype

_IDENTITY = CODES["identity"]
_SIGMOID = CODES["sigmoid"]  # for a gate that is not there


def synchronised(x: Tensor, bn: BatchNorm, group: Any, *, fused: bool) -> tuple[Tensor, BatchNorm]:
    """``bn`` with the statistics of ``x`` and the other processes' batches, as constants, and the x to use it on.

    The running statistics of ``bn`` are updated. The returned x is ``x`` as autocast wants it, and takes the gradient
    of the statistics: an operator has to be given it in place of ``x``.

    Args:
        x: this process's (N, C, H, W); N may differ between processes, and be 0.
        bn: with ``training`` True.
        group: a ``torch.distributed.ProcessGroup``, or None for this process alone.
        fused: whether the fused operators, or plain PyTorch, read and write what is as large as x.
    """
    check_activations_tensor(x, "x")
    x, fused = _prepared(x, fused)
    channels = x.shape[1]
    # Other processes may have more than this one's single value.
    check_batch_norm(bn, x.numel() // channels if group is None else 0, channels, x)
    return _with_constants(x, bn, group, *_moments(x, fused), fused)


def mbconv_core(
    u: Tensor,
    w: Tensor,
    bn2: BatchNorm,
    bn1: BatchNorm | None,
    se: SqueezeExcite | None,
    stride: int,
    padding: int | Sequence[int],
    activation: str,
    gate: str,
    *,
    group: Any,
    fused: bool,
) -> Tensor:
    """``effnet_kernels.mbconv_core`` with the statistics of ``bn2`` over the processes of ``group``.

    Saved for backward where ``fused`` are u, y and small vectors, as by the operator itself; a and z are written in
    forward, and again in backward.

    Args:
        bn1: with constants, or over this process's batch alone.
        u, w, bn2, se, stride, padding, activation, gate: as for ``effnet_kernels.mbconv_core``.
        group, fused: as for :func:`synchronised`.
    """
    u, fused = _prepared(u, fused)
    pads = prepare(u, w, _as_constants(bn2, u), bn1, se, stride, padding, activation, gate).pads
    if bn1 is not None and bn1.training:
        u, bn1 = synchronised(u, bn1, None, fused=fused)
    if not fused:
        a = u if bn1 is None else reference.batch_norm_act(u, bn1, activation)
        y, bn2 = synchronised(reference.depthwise_conv(a, w, stride, pads), bn2, group, fused=False)
        z = reference.batch_norm_act(y, bn2, activation)
        return z if se is None else reference.squeeze_excite(z, se, activation, gate)
    bn1_tensors = (None,) * 4 if bn1 is None else (*affine(bn1, u.shape[1], u), bn1.mean, bn1.var)
    eps1 = 0.0 if bn1 is None else bn1.eps
    y, mean, var = _NormalisedDepthwise.apply(u, w, *bn1_tensors, eps1, stride, pads, CODES[activation])
    y, bn2 = _with_constants(y, bn2, group, mean, var, fused)
    if se is None:
        return ops.batch_norm_act(y, *bn2[:4], training=False, eps=bn2.eps, activation=activation)
    return _NormalisedExcite.apply(y, *bn2[:4], *se, bn2.eps, CODES[activation], CODES[gate])


def _prepared(x: Tensor, fused: bool) -> tuple[Tensor, bool]:
    """``x`` as the operators take it, and whether there are operators for it."""
    if not fused:
        return x, False
    x = dense(autocast(x))
    return x, backend_for(x.device, x.dtype) != "reference"


def _as_constants(bn: BatchNorm, like: Tensor) -> BatchNorm:
    """``bn`` as it will be when its statistics are known, for the checks of shapes."""
    if bn.mean is not None:
        return bn._replace(training=False)
    nothing = _filled(like, 0.0)
    return bn._replace(training=False, mean=nothing, var=nothing)


def _filled(like: Tensor, value: float) -> Tensor:
    """One value for every channel of ``like``."""
    return like.new_full((like.shape[1],), value, dtype=statistics_dtype(like))


@torch.no_grad()
def _moments(x: Tensor, fused: bool) -> tuple[Tensor, Tensor]:
    """This process's mean and biased variance per channel; zeros where the batch is empty."""
    if x.shape[0] == 0:
        return _filled(x, 0.0), _filled(x, 0.0)
    if not fused:
        var, mean = torch.var_mean(x.to(statistics_dtype(x)), (0, 2, 3), correction=0)
        return mean, var
    one, zero = _filled(x, 1.0), _filled(x, 0.0)
    namespace = operators(backend_for(x.device, x.dtype))
    _out, mean, var = namespace.batch_norm_act(x, one, zero, None, None, None, None, 1.0, _IDENTITY)
    return mean, var


def _with_constants(
    x: Tensor, bn: BatchNorm, group: Any, mean: Tensor, var: Tensor, fused: bool
) -> tuple[Tensor, BatchNorm]:
    """As :func:`synchronised`, for the moments ``mean`` and ``var`` of ``x``.

    The constants' gradient comes from that of γ and β: the operator is given γ √((σ₀² + eps) / (σ² + eps)) and
    β − γ r (μ − μ₀) with the constants μ₀ and σ₀², which are γ and β but depend on μ and σ².
    """
    x, mean, var, count = _Synchronise.apply(x, mean, var, group, fused)
    constant_mean, constant_var = mean.detach(), var.detach()
    _update_running_stats(bn, constant_mean, constant_var, count)
    gamma, beta = affine(bn, x.shape[1], x)
    beta = beta - gamma * (mean - constant_mean) * torch.rsqrt(var + bn.eps)
    gamma = gamma * torch.sqrt((constant_var + bn.eps) / (var + bn.eps))
    return x, BatchNorm(gamma, beta, constant_mean, constant_var, False, 0.0, bn.eps)


@torch.no_grad()
def _update_running_stats(bn: BatchNorm, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """Move the running statistics toward those of ``count`` values; ``count`` stays on its device."""
    if bn.mean is None or bn.var is None:
        return
    weight = bn.momentum * (count > 0).to(count.dtype)
    unbiased = var * (count / (count - 1).clamp(min=1))
    for running, batch in ((bn.mean, mean), (bn.var, unbiased)):
        running.copy_((1 - weight) * running + weight * batch)


def _gathered(vector: Tensor, group: Any) -> Tensor:
    """``vector`` of every process as the rows of a matrix, in the order of their ranks."""
    if group is None:
        return vector[None]
    rows = vector.new_empty(dist.get_world_size(group), len(vector))
    dist.all_gather(list(rows.unbind()), vector, group=group)
    return rows


class _Synchronise(torch.autograd.Function):
    """x itself, and the mean, biased variance and number of all processes' values.

    Sums over processes are taken in the order of the ranks and in float64: every process has the same bits.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, var: Tensor, group: Any, fused: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count = mean.new_full((1,), x.shape[0] * x.shape[2] * x.shape[3], dtype=torch.float64)
        rows = _gathered(torch.cat((count, mean.double(), var.double())), group)
        counts, means, variances = rows.split((1, len(mean), len(mean)), dim=1)
        total = counts.sum()
        share = counts / total.clamp(min=1)
        merged_mean = (share * means).sum(0)
        merged_var = (share * (variances + (means - merged_mean).square())).sum(0)
        merged_mean, merged_var = merged_mean.to(mean.dtype), merged_var.to(mean.dtype)
        ctx.mark_non_differentiable(total)
        ctx.save_for_backward(x, merged_mean, total)
        ctx.group, ctx.fused = group, fused
        # Not x or x.view_as(x), whose strides need not be those of x where N is 1.
        return x.detach(), merged_mean, merged_var, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx: Tensor, dmean: Tensor, dvar: Tensor, _dtotal: None) -> tuple[Tensor | None, ...]:
        x, mean, total = ctx.saved_tensors
        sums = _gathered(torch.cat((dmean, dvar)).double(), ctx.group).sum(0) / total.clamp(min=1)
        shift, slope = sums.to(mean.dtype).split(len(mean))
        return _plus_line(dx, x, mean, shift, 2 * slope, ctx.fused), None, None, None, None


def _plus_line(dx: Tensor, x: Tensor, mean: Tensor, shift: Tensor, slope: Tensor, fused: bool) -> Tensor:
    """dx + shift + slope · (x − mean)."""
    if not fused:
        mean, shift, slope = (t.view(-1, 1, 1) for t in (mean, shift, slope))
        return dx + (shift + slope * (x - mean)).to(dx.dtype)
    namespace = operators(backend_for(x.device, x.dtype))
    line, _mean, _var = namespace.batch_norm_act(
        x, slope, shift, mean, _filled(x, 1.0), None, dense_like(dx, x), 0.0, _IDENTITY
    )
    return line


class _NormalisedDepthwise(torch.autograd.Function):
    """y = dwconv(act(BN1(u))) with constants in BN1, or without it, and y's moments; saves u alone.

    Forward is ``mbconv_core`` up to y. Its backward begins at an activation of y, so here it is that of BN1 and of the
    convolution as operators of their own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        w: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        eps: float,
        stride: int,
        padding: Sequence[int],
        activation: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(u, w, gamma, beta, mean, var)
        ctx.settings = eps, stride, padding, activation
        ctx.set_materialize_grads(False)
        one, zero = _filled(u, 1.0), _filled(u, 0.0)
        no_se = (None,) * 4
        _out, y, _mean1, _var1, mean2, var2, *_vectors = operators(backend_for(u.device, u.dtype)).mbconv_core(
            u,
            w,
            gamma,
            beta,
            mean,
            var,
            one,
            zero,
            None,
            None,
            *no_se,
            stride,
            padding,
            eps,
            1.0,
            activation,
            _SIGMOID,
        )
        ctx.mark_non_differentiable(mean2, var2)
        return y, mean2, var2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_moments: None) -> tuple[Tensor | None, ...]:
        u, w, gamma, beta, mean, var = ctx.saved_tensors
        eps, stride, padding, activation = ctx.settings
        namespace = operators(backend_for(u.device, u.dtype))
        one, zero = _filled(u, 1.0), _filled(u, 0.0)
        a = u
        if gamma is not None:
            a, _mean, _var = namespace.batch_norm_act(u, gamma, beta, mean, var, None, None, eps, activation)
        dy = dense_like(dy, u)
        # The identity's derivative asks for no y, and the gradient of its γ is not wanted: any tensor will do.
        da, dw, _dgamma, _dbeta = namespace.depthwise_conv_bn_act_backward(
            dy, a, dy, w, one, zero, zero, one, False, stride, padding, 0.0, _IDENTITY
        )
        no_settings = (None,) * 6
        if gamma is None:
            return (da, dw, None, None, *no_settings)
        du, dgamma, dbeta = namespace.batch_norm_act_backward(
            da, u, gamma, beta, mean, var, None, False, eps, activation
        )
        return (du, dw, dgamma, dbeta, *no_settings)


class _NormalisedExcite(torch.autograd.Function):
    """SE(act(BN2(y))) with constants in BN2; saves y and (N, C)-sized vectors, and computes z again in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        gamma: Tensor,
        beta: Tensor,
        mean: Tensor,
        var: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        eps: float,
        activation: int,
        gate: int,
    ) -> Tensor:
        namespace = operators(backend_for(y.device, y.dtype))
        z, _mean, _var = namespace.batch_norm_act(y, gamma, beta, mean, var, None, None, eps, activation)
        out, *vectors = namespace.squeeze_excite(z, w1, b1, w2, b2, activation, gate)
        ctx.save_for_backward(y, gamma, beta, mean, var, w1, b1, w2, b2, *vectors)
        ctx.settings = eps, activation, gate
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, gamma, beta, mean, var, *se_and_vectors = ctx.saved_tensors
        eps, activation, gate = ctx.settings
        namespace = operators(backend_for(y.device, y.dtype))
        bn = (gamma, beta, mean, var, None)
        z, _mean, _var = namespace.batch_norm_act(y, *bn, None, eps, activation)
        dz, *dse = namespace.squeeze_excite_backward(dense_like(grad, y), z, *se_and_vectors, activation, gate)
        dy, dgamma, dbeta = namespace.batch_norm_act_backward(dz, y, *bn, False, eps, activation)
        return (dy, dgamma, dbeta, None, None, *dse, None, None, None)
