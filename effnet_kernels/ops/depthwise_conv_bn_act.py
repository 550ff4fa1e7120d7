"""``depthwise_conv_bn_act``: act(BN(dwconv(x))), the batch statistics taken while the convolution writes its output."""

from collections.abc import Sequence
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
    check_depthwise,
    output_size,
)
from effnet_kernels.backend import backend_for
from effnet_kernels.ops.registration import operators, register, register_backward, register_differentiable
from effnet_kernels.ops.running_stats import affine, constant_statistics, update_running_stats
from effnet_kernels.tensors import autocast, dense, dense_like, memory_format, needs_grad, statistics_dtype


def depthwise_conv_bn_act(
    x: Tensor,
    w: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    *,
    stride: int = 1,
    padding: int | Sequence[int] | None = None,
    training: bool = True,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    activation: str = "silu",
) -> Tensor:
    """Depthwise convolution, BatchNorm and activation in one operator.

    Computes y[n,c,i,j] = Σ_{p,q} w[c,0,p,q] x[n,c,i·stride + p − top, j·stride + q − left], zeros outside x, then,
    with the mean μ and biased variance σ² of y over (N, Ho, Wo) in training and ``mean``, ``var`` else::

        out = act(γ (y − μ) / √(σ² + eps) + β)

    Backward recomputes everything else from x and y, which are all that is saved: dv = grad · act'(v),
    dβ = Σ dv, dγ = Σ dv ŷ, dy = γ / √(σ² + eps) · (dv − dβ/M − ŷ dγ/M) in registers, dx = dwconvᵀ(dy),
    dw = corr(x, dy). Memory traffic (Ein, Eout: elements of x and of out): Ein + 3 Eout forward in training,
    Ein + Eout in inference, 2 Ein + 4 Eout backward.

    Args:
        x: (N, C, H, W), float32, float16, bfloat16 or float64; NCHW or channels_last, returned in the same.
        w: (C, 1, K, K), K of 3, 5 or 7.
        gamma, beta: (C,) scale and shift, or None for 1 and 0.
        mean, var: (C,) running statistics; updated in place in training, read otherwise; None where none are kept.
        stride: 1 or 2.
        padding: (top, bottom, left, right) or one number for all four; by default (K − 1) // 2.
        training: take the statistics from the batch.
        momentum: weight of the batch in the running statistics; a number, or a tensor of no dimensions.
        eps: added to the variance.
        activation: ``identity``, ``relu``, ``relu6``, ``silu`` or ``hardswish``.

    Raises:
        TypeError: a tensor has an unsupported dtype.
        ValueError: an argument has the wrong shape, device or value.

    Source: Tan and Le 2019 (arXiv 1905.11946), section 4; Sandler et al. 2018 (arXiv 1801.04381), section 3.
    """
    check_activations_tensor(x, "x")
    check_activation(activation)
    pads = check_depthwise(w, x, stride, padding)
    x = autocast(x)
    count = x.shape[0] * output_height(x, w, stride, pads) * output_width(x, w, stride, pads)
    bn = BatchNorm(gamma, beta, mean, var, training, momentum, eps)
    check_batch_norm(bn, count, x.shape[1], x)
    backend = backend_for(x.device, x.dtype)
    if backend == "reference":
        return reference.depthwise_conv_bn_act(x, w, bn, stride, pads, activation)
    x = dense(x)
    gamma, beta = affine(bn, x.shape[1], x)
    settings = (stride, pads, eps, CODES[activation])
    if not training and not needs_grad(x, w, gamma, beta):
        return operators(backend).depthwise_conv_bn_act_inference(x, w, gamma, beta, mean, var, *settings)
    out, _y, batch_mean, batch_var = operators(backend).depthwise_conv_bn_act(
        x, w, gamma, beta, *constant_statistics(bn), *settings
    )
    update_running_stats(backend, bn, batch_mean, batch_var, count)
    return out


def output_height(x: Tensor, w: Tensor, stride: int, padding: Sequence[int]) -> int:
    return output_size(x.shape[2], w.shape[2], stride, padding[0] + padding[1])


def output_width(x: Tensor, w: Tensor, stride: int, padding: Sequence[int]) -> int:
    return output_size(x.shape[3], w.shape[3], stride, padding[2] + padding[3])


def empty_output(x: Tensor, w: Tensor, stride: int, padding: Sequence[int]) -> Tensor:
    """An uninitialised tensor of the convolution's output shape, in the layout of ``x``."""
    shape = (x.shape[0], x.shape[1], output_height(x, w, stride, padding), output_width(x, w, stride, padding))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def _fake(
    x: Tensor,
    w: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    stride: int,
    padding: Sequence[int],
    eps: float,
    activation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = empty_output(x, w, stride, padding)
    statistics = x.new_empty(x.shape[1] if mean is None else 0, dtype=statistics_dtype(x))
    return out, torch.empty_like(out), statistics, torch.empty_like(statistics)


def _fake_inference(
    x: Tensor,
    w: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    stride: int,
    padding: Sequence[int],
    eps: float,
    activation: int,
) -> Tensor:
    return empty_output(x, w, stride, padding)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, w, gamma, beta, mean, var, *ctx.settings = inputs
    _out, y, batch_mean, batch_var = output
    ctx.mark_non_differentiable(y, batch_mean, batch_var)
    ctx.training = mean is None
    ctx.save_for_backward(x, y, w, gamma, beta, *((batch_mean, batch_var) if ctx.training else (mean, var)))


def _backward(namespace: Any, ctx: Any, grad: Tensor, *_unused: None) -> tuple[Tensor | None, ...]:
    x, *saved = ctx.saved_tensors
    gradients = namespace.depthwise_conv_bn_act_backward(dense_like(grad, x), x, *saved, ctx.training, *ctx.settings)
    return (*gradients, None, None, None, None, None, None)


def _fake_backward(
    grad: Tensor, x: Tensor, y: Tensor, w: Tensor, gamma: Tensor, beta: Tensor, *_settings: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(w), torch.empty_like(gamma), torch.empty_like(beta)


register_differentiable("depthwise_conv_bn_act", _fake, _setup_context, _backward)
register("depthwise_conv_bn_act_inference", _fake_inference)
register_backward("depthwise_conv_bn_act_backward", _fake_backward)
