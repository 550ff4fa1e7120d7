"""``mbconv_core`` in Triton: SE(act(BN2(dwconv(act(BN1(u)))))) as the passes of docs/design.md, no kernels of its own.

Two tensors are materialised that a program cannot keep in registers over K² taps: a = act(BN1(u)) before the
convolution, and dy before its gradient. Both are freed when their pass ends. Memory traffic (Ein, Eout: elements of u
and of out)::

    F1 statistics of u                  Ein               B1 sums over (grad, y)       2 Eout
    F2 a = act(BN1(u))                2 Ein               B2 dy                        3 Eout
       y = dwconv(a), its moments       Ein +   Eout         dv1, dW, BN1's sums       2 Ein + Eout
    F3 pooled z, A3, A5                         Eout      B3 du, in place              3 Ein
    F4 out = z · s                            2 Eout
                                      4 Ein + 4 Eout                                   5 Ein + 6 Eout

Together 9 Ein + 10 Eout. In inference: 2 Ein for a, Ein + Eout for z and its sums, 2 Eout to scale.
"""

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from effnet_kernels.triton.batch_norm_act import (
    NO_NORMALIZATION,
    DzTerms,
    Normalization,
    input_gradient_of,
    normalized,
    summed_backward,
    summed_batch_norm_gradient,
)
from effnet_kernels.triton.convolution import Convolution
from effnet_kernels.triton.depthwise_conv_bn_act import convolution_gradient, convolved, convolved_in_inference
from effnet_kernels.triton.launch import vector
from effnet_kernels.triton.squeeze_excite import Weights, excite_backward, excited, pooled_sums
from effnet_kernels.triton.statistics import batch_statistics, merged_statistics


def _weights(w1: Tensor | None, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None) -> Weights | None:
    if w1 is None or b1 is None or w2 is None or b2 is None:
        return None
    return Weights(w1, b1, w2, b2)


def _normalization(
    gamma: Tensor | None, beta: Tensor | None, mean: Tensor | None, var: Tensor | None, eps: float, activation: int
) -> Normalization:
    return NO_NORMALIZATION if gamma is None else Normalization(gamma, beta, mean, var, eps, activation)


def forward(
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
    eps1: float,
    eps2: float,
    activation: int,
    gate: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator ``mbconv_core``: out, y, the batches' statistics, and what SE's backward needs."""
    nothing = vector(u, 0)
    batch1 = (nothing, nothing.clone())
    given1: tuple[Tensor | None, Tensor | None] = (mean1, var1)
    if gamma1 is not None and mean1 is None:
        given1 = batch1 = batch_statistics(u)
    bn1 = _normalization(gamma1, beta1, *given1, eps1, activation)
    a = u if bn1.mean is None else normalized(u, bn1)
    y, moments = convolved(a, w, Convolution.of(u, w, stride, padding))
    del a
    batch2 = merged_statistics(moments) if mean2 is None else (nothing.clone(), nothing.clone())
    bn2 = Normalization(gamma2, beta2, *(batch2 if mean2 is None else (mean2, var2)), eps2, activation)

    weights = _weights(w1, b1, w2, b2)
    if weights is None:
        vectors = tuple(nothing.clone() for _ in range(5))
        return (normalized(y, bn2), y, *batch1, *batch2, *vectors)  # type: ignore[return-value]
    sums = pooled_sums(y, bn2)
    pixels = y.shape[2] * y.shape[3]
    se = excited(sums.z_sum, sums.per_image, pixels, weights, activation, gate)
    assert sums.a3 is not None and sums.a5 is not None
    out = normalized(y, bn2, scale=se.scale)
    return out, y, *batch1, *batch2, se.pooled, se.hidden, se.logits, sums.a3, sums.a5


def inference(
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
    """The operator ``mbconv_core_inference``: z · s and nothing, or z and s where the caller scales."""
    bn1 = _normalization(gamma1, beta1, mean1, var1, eps1, activation)
    bn2 = Normalization(gamma2, beta2, mean2, var2, eps2, activation)
    a = u if bn1.mean is None else normalized(u, bn1)
    weights = _weights(w1, b1, w2, b2)
    z, z_sum, per_image = convolved_in_inference(
        a, w, bn2, Convolution.of(u, w, stride, padding), pooled=weights is not None
    )
    if weights is None or z_sum is None:
        return z, vector(u, 0)
    se = excited(z_sum, per_image, z.shape[2] * z.shape[3], weights, activation, gate)
    if not scaled:
        return z, se.scale
    return normalized(z, NO_NORMALIZATION, scale=se.scale, out=z), vector(u, 0)


def backward(
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
    pooled: Tensor | None,
    hidden: Tensor | None,
    logits: Tensor | None,
    a3: Tensor | None,
    a5: Tensor | None,
    training1: bool,
    training2: bool,
    stride: int,
    padding: Sequence[int],
    eps1: float,
    eps2: float,
    activation: int,
    gate: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator ``mbconv_core_backward``."""
    bn1 = _normalization(gamma1, beta1, mean1, var1, eps1, activation)
    bn2 = Normalization(gamma2, beta2, mean2, var2, eps2, activation)
    weights = _weights(w1, b1, w2, b2)
    sums = summed_backward(grad, y, bn2, scaled=weights is not None)
    terms, dse = DzTerms(), tuple(vector(u, 0) for _ in range(4))
    if weights is not None and sums.a1 is not None:
        assert pooled is not None and hidden is not None and logits is not None
        pixels = y.shape[2] * y.shape[3]
        d = excite_backward(sums.a1, sums.per_image, pixels, weights, pooled, hidden, logits, activation, gate)
        terms, dse = DzTerms(scale=d.scale, dpooled=d.dpooled), (d.dw1, d.db1, d.dw2, d.db2)
    count2 = y.numel() // y.shape[1]
    slopes = {"a3": a3, "a5": a5} if weights is not None else {}
    dbn2 = summed_batch_norm_gradient(sums, terms, gamma2, beta2, count2, training=training2, **slopes)
    dy = input_gradient_of(grad, y, bn2, terms, dbn2)
    d1 = convolution_gradient(u, dy, w, bn1, Convolution.of(u, w, stride, padding), training1=training1)
    del dy
    du, dgamma1, dbeta1 = d1.dx, vector(u, 0), vector(u, 0)
    if d1.bn1 is not None:
        dgamma1, dbeta1 = d1.bn1.dgamma, d1.bn1.dbeta
        if training1:
            linear = dataclasses.replace(bn1, activation=NO_NORMALIZATION.activation)
            du = input_gradient_of(du, u, linear, means=d1.bn1, out=du)
    return (du, d1.dw, dgamma1, dbeta1, dbn2.dgamma, dbn2.dbeta, *dse)  # type: ignore[return-value]
