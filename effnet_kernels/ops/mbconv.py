"""``mbconv``: project(SE(act(BN2(dwconv(act(BN1(expand(x)))))))), a whole MBConv block up to its last BatchNorm."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from effnet_kernels.arguments import BatchNorm, SqueezeExcite, check_activations_tensor, check_pointwise
from effnet_kernels.ops import mbconv_core as core
from effnet_kernels.ops.pointwise_conv import channels_last_like, has_products, pointwise_conv
from effnet_kernels.ops.registration import register_backward, register_differentiable
from effnet_kernels.ops.running_stats import update_running_stats
from effnet_kernels.tensors import autocast, needs_grad, statistics_dtype


def mbconv(
    x: Tensor,
    w: Tensor,
    w_project: Tensor,
    bn2: BatchNorm,
    *,
    w_expand: Tensor | None = None,
    bn1: BatchNorm | None = None,
    se: SqueezeExcite | None = None,
    stride: int = 1,
    padding: int | Sequence[int] | None = None,
    activation: str = "silu",
    gate: str = "sigmoid",
) -> Tensor:
    """:func:`mbconv_core` between its two 1×1 convolutions.

    Computes, without the first line where there is no ``w_expand``::

        u = w_expand ∗ x
        out = w_project ∗ mbconv_core(u)

    Where autograd asks for a gradient and ``x`` is channels_last on CPU it is one operator, in which u's statistics are
    taken as u is written, mbconv_core's output exists only in cache, forward and backward, and so does the gradient of
    u. Saved: x, u, y and (N, C)-sized vectors. Memory traffic (Ein, Eout: elements of u and of y): 2 Ein + 3 Eout
    forward, 4 Ein + 4 Eout backward, the convolutions included and x and out aside. Of the gradients of x, ``w_expand``
    and ``w_project``, each a product of its own, only those that autograd asks for are computed. Elsewhere it is
    :func:`mbconv_core` between two convolutions.

    Args:
        x: (N, K, H, W), float32, float16, bfloat16 or float64; NCHW or channels_last, returned in the same.
        w: (C, 1, K, K) depthwise weight; K = C where there is no ``w_expand``.
        w_project: (O, C, 1, 1).
        w_expand: (C, K, 1, 1), or None; given exactly where ``bn1`` is.
        bn2, bn1, se, stride, padding, activation, gate: as for :func:`mbconv_core`.

    Raises:
        TypeError: a tensor has an unsupported dtype.
        ValueError: an argument has the wrong shape, device or value.

    Source: Tan and Le 2019 (arXiv 1905.11946), section 4; Sandler et al. 2018 (arXiv 1801.04381), section 3.
    """
    check_activations_tensor(x, "x")
    if (w_expand is None) != (bn1 is None):
        raise ValueError("w_expand, bn1: expected both or neither, got one of them")
    if w_expand is not None:
        check_pointwise(w_expand, "w_expand", x.shape[1], x)
    check_pointwise(w_project, "w_project", x.shape[1] if w_expand is None else w_expand.shape[0], x)
    x = autocast(x)
    channels = x.shape[1] if w_expand is None else w_expand.shape[0]
    call = core.prepare(x, w, bn2, bn1, se, stride, padding, activation, gate, channels)
    bn1_tensors, bn2_and_se = call.bn1_tensors(), call.bn2_and_se_tensors()
    if not (has_products(x) and needs_grad(x, w_expand, w, w_project, *bn1_tensors, *bn2_and_se)):
        u = x if w_expand is None else pointwise_conv(x, w_expand)
        out = core.mbconv_core(
            u, w, bn2, bn1=bn1, se=se, stride=stride, padding=padding, activation=activation, gate=gate
        )
        return pointwise_conv(out, w_project)
    out, _u, _y, mean1, var1, mean2, var2, *_vectors = torch.ops.effnet_kernels.mbconv(
        x, w_expand, *bn1_tensors, w, *bn2_and_se, w_project, *call.settings()
    )
    if bn1 is not None:
        update_running_stats("cpu", bn1, mean1, var1, call.count1)
    update_running_stats("cpu", bn2, mean2, var2, call.count2)
    return out


def _fake(
    x: Tensor,
    w_expand: Tensor | None,
    gamma1: Tensor | None,
    beta1: Tensor | None,
    mean1: Tensor | None,
    var1: Tensor | None,
    w: Tensor,
    gamma2: Tensor,
    beta2: Tensor,
    mean2: Tensor | None,
    var2: Tensor | None,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor | None,
    b2: Tensor | None,
    w_project: Tensor,
    *settings: Any,
) -> tuple[Tensor, ...]:
    u = x if w_expand is None else _empty(x, w_expand.shape[0], x.shape[2], x.shape[3])
    middle = core.fake(u, w, gamma1, beta1, mean1, var1, gamma2, beta2, mean2, var2, w1, b1, w2, b2, *settings)
    y = middle[1]
    out = _empty(x, w_project.shape[0], y.shape[2], y.shape[3])
    return (out, x.new_empty(0, dtype=statistics_dtype(x)) if w_expand is None else u, *middle[1:])


def _empty(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    shape = (x.shape[0], channels, height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, w_expand, gamma1, beta1, mean1, var1, w, gamma2, beta2, mean2, var2, w1, b1, w2, b2, w_project = inputs[:16]
    ctx.settings = inputs[16:]
    _out, u, y, batch_mean1, batch_var1, batch_mean2, batch_var2, *vectors = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.training1 = gamma1 is not None and mean1 is None
    ctx.training2 = mean2 is None
    statistics1 = (batch_mean1, batch_var1) if ctx.training1 else (mean1, var1)
    statistics2 = (batch_mean2, batch_var2) if ctx.training2 else (mean2, var2)
    se = (w1, b1, w2, b2)
    saved_vectors = vectors if w1 is not None else (None,) * 5
    ctx.save_for_backward(
        x, u, y, w_expand, gamma1, beta1, *statistics1, w, gamma2, beta2, *statistics2, *se, w_project, *saved_vectors
    )


def _backward(namespace: Any, ctx: Any, grad: Tensor, *_unused: None) -> tuple[Tensor | None, ...]:
    x, *saved = ctx.saved_tensors
    needs_dx, needs_dw_expand, needs_dw_project = (ctx.needs_input_grad[place] for place in (0, 1, 15))
    gradients = namespace.mbconv_backward(
        *(channels_last_like(grad, x), x, *saved, ctx.training1, ctx.training2, *ctx.settings),
        *(needs_dx, needs_dw_expand, needs_dw_project),
    )
    dx, dw_expand, dgamma1, dbeta1, dw, dgamma2, dbeta2, *dse, dw_project = gradients
    expands, excites = saved[2] is not None, saved[12] is not None
    first = (dw_expand if needs_dw_expand else None, dgamma1, dbeta1) if expands else (None, None, None)
    se = dse if excites else (None, None, None, None)
    no_settings = (None,) * 6
    last = dw_project if needs_dw_project else None
    return (dx if needs_dx else None, *first, None, None, dw, dgamma2, dbeta2, None, None, *se, last, *no_settings)


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    u: Tensor,
    y: Tensor,
    w_expand: Tensor | None,
    gamma1: Tensor | None,
    beta1: Tensor | None,
    mean1: Tensor | None,
    var1: Tensor | None,
    w: Tensor,
    gamma2: Tensor,
    beta2: Tensor,
    mean2: Tensor,
    var2: Tensor,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor | None,
    b2: Tensor | None,
    w_project: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    needs_dx, needs_dw_expand, needs_dw_project = rest[-3:]
    dx = x if needs_dx or w_expand is None else None
    dw_expand, dw_project = w_expand if needs_dw_expand else None, w_project if needs_dw_project else None
    tensors = (dx, dw_expand, gamma1, beta1, w, gamma2, beta2, w1, b1, w2, b2, dw_project)
    nothing = x.new_empty(0, dtype=statistics_dtype(x))
    return tuple(torch.empty_like(nothing if t is None else t) for t in tensors)


register_differentiable("mbconv", _fake, _setup_context, _backward)
register_backward("mbconv_backward", _fake_backward)
