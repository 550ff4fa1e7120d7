"""``mbconv_core``: SE(act(BN2(dwconv(act(BN1(u)))))), all that MBConv does between its two 1×1 convolutions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from effnet_kernels import reference
from effnet_kernels.activations import CODES
from effnet_kernels.arguments import (
    BatchNorm,
    Padding,
    SqueezeExcite,
    check_activation,
    check_activations_tensor,
    check_batch_norm,
    check_depthwise,
    check_gate,
    check_squeeze_excite,
)
from effnet_kernels.backend import backend_for
from effnet_kernels.ops.depthwise_conv_bn_act import empty_output, output_height, output_width
from effnet_kernels.ops.registration import operators, register, register_backward, register_differentiable
from effnet_kernels.ops.running_stats import affine, constant_statistics, update_running_stats
from effnet_kernels.tensors import autocast, dense, dense_like, needs_grad, statistics_dtype

_NO_TENSORS = (None, None, None, None)


def mbconv_core(
    u: Tensor,
    w: Tensor,
    bn2: BatchNorm,
    *,
    bn1: BatchNorm | None = None,
    se: SqueezeExcite | None = None,
    stride: int = 1,
    padding: int | Sequence[int] | None = None,
    activation: str = "silu",
    gate: str = "sigmoid",
) -> Tensor:
    """The middle of an MBConv block in one operator: SE(act(BN2(dwconv(act(BN1(u)))))).

    Computes, with u the raw output of the expansion convolution (r1, r2: inverse standard deviations)::

        a = act(γ1 (u − μ1) r1 + β1)        y = dwconv(a)        z = act(γ2 (y − μ2) r2 + β2)
        p[n,c] = mean_hw z                  s = gate(w2 act(w1 p + b1) + b2)        out = z · s

    Without ``bn1``, a = u; without ``se``, out = z. Only u, y and (N, C)-sized vectors are saved for backward, which
    runs in three passes: sums over (grad, y); input gradient, weight gradient and BN1's sums together; BN1's input
    gradient in place. Memory traffic with both (Ein, Eout: elements of u and of out): 2 Ein + 4 Eout forward,
    5 Ein + 4 Eout backward; in inference Ein + 3 Eout.

    Args:
        u: (N, C, H, W), float32, float16, bfloat16 or float64; NCHW or channels_last, returned in the same.
        w: (C, 1, K, K) depthwise weight, K of 3, 5 or 7.
        bn2: the BatchNorm after the depthwise convolution.
        bn1: the BatchNorm before it, or None.
        se: squeeze-and-excite's weights, or None.
        stride: 1 or 2.
        padding: (top, bottom, left, right) or one number for all four; by default (K − 1) // 2.
        activation: after both BatchNorms and inside SE.
        gate: SE's: ``sigmoid`` or ``hardsigmoid``.

    Raises:
        TypeError: a tensor has an unsupported dtype.
        ValueError: an argument has the wrong shape, device or value.

    Source: Tan and Le 2019 (arXiv 1905.11946), section 4; Hu et al. 2018 (arXiv 1709.01507), section 3.
    """
    call = prepare(u, w, bn2, bn1, se, stride, padding, activation, gate)
    backend = backend_for(call.u.device, call.u.dtype)
    if backend == "reference":
        return reference.mbconv_core(call.u, w, bn2, bn1, se, stride, call.pads, activation, gate)
    tensors, settings = call.arguments()
    inference = not bn2.training and (bn1 is None or not bn1.training)
    if inference and not needs_grad(*tensors):
        out, _scale = operators(backend).mbconv_core_inference(*tensors, *settings, True)
        return out
    out, _y, mean1, var1, mean2, var2, *_vectors = operators(backend).mbconv_core(*tensors, *settings)
    if bn1 is not None:
        update_running_stats(backend, bn1, mean1, var1, call.count1)
    update_running_stats(backend, bn2, mean2, var2, call.count2)
    return out


def mbconv_core_unscaled(
    u: Tensor,
    w: Tensor,
    bn2: BatchNorm,
    se: SqueezeExcite,
    *,
    bn1: BatchNorm | None = None,
    stride: int = 1,
    padding: int | Sequence[int] | None = None,
    activation: str = "silu",
    gate: str = "sigmoid",
) -> tuple[Tensor, Tensor]:
    """``mbconv_core`` in inference, left unscaled: z and s of its formula, where ``mbconv_core`` is z · s.

    For a caller that folds s into what follows: the projection of one image is conv(z, w · s). That saves the last
    pass over the activations, 2 Eout of Ein + 3 Eout. Not differentiable.

    Args:
        u, w, bn2, bn1, se, stride, padding, activation, gate: as for :func:`mbconv_core`; ``se`` is required.

    Returns:
        z, in the dtype and layout of ``u``; s of (N, C), float32 (float64 for float64).

    Raises:
        TypeError: a tensor has an unsupported dtype.
        ValueError: an argument has the wrong shape, device or value, or a BatchNorm is in training.
        RuntimeError: autograd would ask for a gradient.
    """
    if se is None:
        raise ValueError("se: expected squeeze-and-excite's weights, got None")
    call = prepare(u, w, bn2, bn1, se, stride, padding, activation, gate)
    for name, bn in (("bn1", bn1), ("bn2", bn2)):
        if bn is not None and bn.training:
            raise ValueError(f"{name}: expected running statistics (training=False), got training=True")
    tensors, settings = call.arguments()
    if needs_grad(*tensors):
        raise RuntimeError("mbconv_core_unscaled has no gradient: call mbconv_core, or call it under torch.no_grad()")
    backend = backend_for(call.u.device, call.u.dtype)
    if backend == "reference":
        z = reference.mbconv_core(call.u, w, bn2, bn1, None, stride, call.pads, activation, gate)
        return z, reference.excitation(z, se, activation, gate).to(statistics_dtype(z))
    z, scale = operators(backend).mbconv_core_inference(*tensors, *settings, False)
    return z, scale


class _Call(NamedTuple):
    """The checked arguments of a call; ``u`` itself, or what stands for it and may have other ``channels``."""

    u: Tensor
    channels: int
    w: Tensor
    bn1: BatchNorm | None
    bn2: BatchNorm
    se: SqueezeExcite | None
    pads: Padding
    count1: int
    count2: int
    stride: int
    activation: str
    gate: str

    def arguments(self) -> tuple[tuple[Tensor | None, ...], tuple[Any, ...]]:
        """The tensors and the settings as the operators take them."""
        return (dense(self.u), self.w, *self.bn1_tensors(), *self.bn2_and_se_tensors()), self.settings()

    def bn1_tensors(self) -> tuple[Tensor | None, ...]:
        bn1 = self.bn1
        return _NO_TENSORS if bn1 is None else (*affine(bn1, self.channels, self.u), *constant_statistics(bn1))

    def bn2_and_se_tensors(self) -> tuple[Tensor | None, ...]:
        bn2 = (*affine(self.bn2, self.channels, self.u), *constant_statistics(self.bn2))
        return (*bn2, *(_NO_TENSORS if self.se is None else self.se))

    def settings(self) -> tuple[Any, ...]:
        eps1 = 0.0 if self.bn1 is None else self.bn1.eps
        return (self.stride, self.pads, eps1, self.bn2.eps, CODES[self.activation], CODES[self.gate])


def prepare(
    u: Tensor,
    w: Tensor,
    bn2: BatchNorm,
    bn1: BatchNorm | None,
    se: SqueezeExcite | None,
    stride: int,
    padding: int | Sequence[int] | None,
    activation: str,
    gate: str,
    channels: int | None = None,
) -> _Call:
    """Check all arguments; of ``u`` with other ``channels``, where it stands for a tensor that is not there yet."""
    check_activations_tensor(u, "u")
    check_activation(activation)
    check_gate(gate)
    channels = u.shape[1] if channels is None else channels
    pads = check_depthwise(w, u, stride, padding, channels)
    u = autocast(u)
    count1 = u.shape[0] * u.shape[2] * u.shape[3]
    count2 = u.shape[0] * output_height(u, w, stride, pads) * output_width(u, w, stride, pads)
    check_batch_norm(bn2, count2, channels, u, "2")
    if bn1 is not None:
        check_batch_norm(bn1, count1, channels, u, "1")
    if se is not None:
        check_squeeze_excite(se, channels, u)
    return _Call(u, channels, w, bn1, bn2, se, pads, count1, count2, stride, activation, gate)


def fake(
    u: Tensor,
    w: Tensor,
    gamma1: Tensor | None,
    beta1: Tensor | None,
    mean1: Tensor | None,
    var1: Tensor | None,
    gamma2: Tensor,
    beta2: Tensor,
    mean2: Tensor | None,
    var2: Tensor | None,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor | None,
    b2: Tensor | None,
    stride: int,
    padding: Sequence[int],
    *_settings: Any,
) -> tuple[Tensor, ...]:
    def empty(*shape: int) -> Tensor:
        return u.new_empty(shape, dtype=statistics_dtype(u))

    out = empty_output(u, w, stride, padding)
    batch, channels = u.shape[:2]
    statistics1 = channels if gamma1 is not None and mean1 is None else 0
    statistics2 = channels if mean2 is None else 0
    statistics = (empty(statistics1), empty(statistics1), empty(statistics2), empty(statistics2))
    if w1 is None:
        return (out, torch.empty_like(out), *statistics, *(empty(0) for _ in range(5)))
    hidden = empty(batch, w1.shape[0])
    pooled, logits, a3, a5 = (empty(batch, channels) for _ in range(4))
    return (out, torch.empty_like(out), *statistics, pooled, hidden, logits, a3, a5)


def _fake_inference(
    u: Tensor,
    w: Tensor,
    gamma1: Tensor | None,
    beta1: Tensor | None,
    mean1: Tensor | None,
    var1: Tensor | None,
    gamma2: Tensor,
    beta2: Tensor,
    mean2: Tensor,
    var2: Tensor,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor | None,
    b2: Tensor | None,
    stride: int,
    padding: Sequence[int],
    eps1: float,
    eps2: float,
    activation: int,
    gate: int,
    scaled: bool,
) -> tuple[Tensor, Tensor]:
    unscaled = w1 is not None and not scaled
    scale = u.new_empty(u.shape[:2] if unscaled else (0,), dtype=statistics_dtype(u))
    return empty_output(u, w, stride, padding), scale


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    u, w, gamma1, beta1, mean1, var1, gamma2, beta2, mean2, var2, w1, b1, w2, b2, *ctx.settings = inputs
    _out, y, batch_mean1, batch_var1, batch_mean2, batch_var2, *vectors = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.training1 = gamma1 is not None and mean1 is None
    ctx.training2 = mean2 is None
    statistics1 = (batch_mean1, batch_var1) if ctx.training1 else (mean1, var1)
    statistics2 = (batch_mean2, batch_var2) if ctx.training2 else (mean2, var2)
    saved_vectors = vectors if w1 is not None else (None,) * 5
    ctx.save_for_backward(
        u, y, w, gamma1, beta1, *statistics1, gamma2, beta2, *statistics2, w1, b1, w2, b2, *saved_vectors
    )


def _backward(namespace: Any, ctx: Any, grad: Tensor, *_unused: None) -> tuple[Tensor | None, ...]:
    u, y, w, gamma1, *saved = ctx.saved_tensors
    du, dw, dgamma1, dbeta1, dgamma2, dbeta2, *dse = namespace.mbconv_core_backward(
        dense_like(grad, u), u, y, w, gamma1, *saved, ctx.training1, ctx.training2, *ctx.settings
    )
    bn1_gradients = _NO_TENSORS if gamma1 is None else (dgamma1, dbeta1, None, None)
    has_se = saved[7] is not None
    se_gradients = dse if has_se else _NO_TENSORS
    no_settings = (None,) * 6
    return (du, dw, *bn1_gradients, dgamma2, dbeta2, None, None, *se_gradients, *no_settings)


def _fake_backward(
    grad: Tensor,
    u: Tensor,
    y: Tensor,
    w: Tensor,
    gamma1: Tensor | None,
    beta1: Tensor | None,
    mean1: Tensor | None,
    var1: Tensor | None,
    gamma2: Tensor,
    beta2: Tensor,
    mean2: Tensor,
    var2: Tensor,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor | None,
    b2: Tensor | None,
    *_rest: Any,
) -> tuple[Tensor, ...]:
    parameters = (u, w, gamma1, beta1, gamma2, beta2, w1, b1, w2, b2)
    nothing = u.new_empty(0, dtype=statistics_dtype(u))
    return tuple(torch.empty_like(nothing if t is None else t) for t in parameters)


register_differentiable("mbconv_core", fake, _setup_context, _backward)
register("mbconv_core_inference", _fake_inference)
register_backward("mbconv_core_backward", _fake_backward)
