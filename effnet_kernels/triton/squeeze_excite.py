"""``squeeze_excite`` in Triton: x · gate(W2 act(W1 mean(x) + b1) + b2).

Kernels, beside those of triton/batch_norm_act.py::

    pool                x or y → Σ z (and Σ φ'(v), Σ φ'(v) ŷ) of parts of images
    excite_hidden       Σ z → mean, W1 mean + b1               excite_scale     → W2 act(hidden) + b2, its gate
    excite_gradient     Σ g z → dlogits, dhidden               excite_pooled    → gradient of the mean / (H·W)
    excite_weights      → dW1, db1, dW2, db2

Memory traffic in units of x: 2 reads + 1 write forward, 3 reads + 1 write backward; all else is (N, C)-sized.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from effnet_kernels.triton.activation import value_and_slope
from effnet_kernels.triton.batch_norm_act import (
    NO_NORMALIZATION,
    DzTerms,
    Normalization,
    batch_norm_constants,
    input_gradient_of,
    normalized,
    summed_backward,
)
from effnet_kernels.triton.launch import as_parameter, launch, packed, vector
from effnet_kernels.triton.tile import Parts, Stream, row_tile, units_of_part


@triton.jit(do_not_specialize=["parts_per_group", "units_per_part", "units_per_group", "eps"])
def pool(
    y,
    gamma,
    beta,
    mean,
    var,
    z_sum,
    a3,
    a5,
    channels,
    pixels,
    elements,
    parts_per_group,
    units_per_part,
    units_per_group,
    eps,
    ACTIVATION: tl.constexpr,
    LAYOUT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """z_sum, a3, a5 (N·parts, C): Σ z, Σ φ'(v) and Σ φ'(v) ŷ over each part of an image, z = act(BN(y)).

    Where ``mean`` is None, z is y itself and there is only z_sum.
    """
    blocks = tl.cdiv(channels, BLOCK_C)
    part = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < channels
    first, last = units_of_part(part, parts_per_group, units_per_part, units_per_group)
    sum_z = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    sum_3 = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    sum_5 = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    image = (part // parts_per_group).to(tl.int64) * elements
    if mean is not None:
        g, b, mu, rstd = batch_norm_constants(gamma, beta, mean, var, channel[:, None], known[:, None], eps)
    for unit in range(first, last):
        pixel = unit % units_per_group * BLOCK_P + tl.arange(0, BLOCK_P)
        offsets, readable, inside = row_tile(channel[:, None], pixel[None, :], channels, pixels, elements, LAYOUT)
        z = tl.load(y + image + offsets, mask=readable, other=0.0).to(tl.float32)
        if mean is not None:
            normalized = (z - mu) * rstd
            z, slope = value_and_slope(g * normalized + b, ACTIVATION)
            sum_3 += tl.where(inside, slope, 0.0)
            sum_5 += tl.where(inside, slope * normalized, 0.0)
        sum_z += tl.where(inside, z, 0.0)
    row = part * channels + channel
    tl.store(z_sum + row, tl.sum(sum_z, 1), mask=known)
    if mean is not None:
        tl.store(a3 + row, tl.sum(sum_3, 1), mask=known)
        tl.store(a5 + row, tl.sum(sum_5, 1), mask=known)


@triton.jit
def sum_parts(sums, image, per_image, channels, channel, known):
    """Σ over an image's parts of (N·parts, C) at ``channel``."""
    total = tl.zeros(channel.shape, tl.float32)
    for part in range(per_image):
        total += tl.load(sums + (image * per_image + part) * channels + channel, mask=known, other=0.0)
    return total


@triton.jit(do_not_specialize=["channels", "per_image"])
def merge_parts(sums, out, channels, per_image, BLOCK_C: tl.constexpr):
    """out (N, C) = Σ over an image's parts of sums (N·parts, C)."""
    blocks = tl.cdiv(channels, BLOCK_C)
    image = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < channels
    tl.store(out + image * channels + channel, sum_parts(sums, image, per_image, channels, channel, known), mask=known)


@triton.jit(do_not_specialize=["channels", "squeezed", "per_image", "pixels"])
def excite_hidden(
    z_sum,
    w1,
    b1,
    pooled,
    hidden,
    channels,
    squeezed,
    per_image,
    pixels,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """pooled (N, C) = Σ z / (H·W) and hidden (N, S) = W1 pooled + b1, before its activation."""
    blocks = tl.cdiv(squeezed, BLOCK_S)
    image = tl.program_id(0) // blocks
    s = tl.program_id(0) % blocks * BLOCK_S + tl.arange(0, BLOCK_S)
    total = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for first in range(0, channels, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        known = channel < channels
        average = sum_parts(z_sum, image, per_image, channels, channel, known) / pixels
        if tl.program_id(0) % blocks == 0:
            tl.store(pooled + image * channels + channel, average, mask=known)
        inside = (s[:, None] < squeezed) & known[None, :]
        weight = tl.load(w1 + s[:, None] * channels + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        total += weight * average[None, :]
    bias = tl.load(b1 + s, mask=s < squeezed, other=0.0).to(tl.float32)
    tl.store(hidden + image * squeezed + s, tl.sum(total, 1) + bias, mask=s < squeezed)


@triton.jit(do_not_specialize=["channels", "squeezed"])
def excite_scale(
    hidden,
    w2,
    b2,
    logits,
    scale,
    channels,
    squeezed,
    ACTIVATION: tl.constexpr,
    GATE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """logits (N, C) = W2 act(hidden) + b2 and scale = gate(logits)."""
    blocks = tl.cdiv(channels, BLOCK_C)
    image = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < channels
    total = tl.zeros([BLOCK_C, BLOCK_S], tl.float32)
    for first in range(0, squeezed, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        h, _ = value_and_slope(tl.load(hidden + image * squeezed + s, mask=s < squeezed, other=0.0), ACTIVATION)
        inside = known[:, None] & (s[None, :] < squeezed)
        weight = tl.load(w2 + channel[:, None] * squeezed + s[None, :], mask=inside, other=0.0).to(tl.float32)
        total += weight * h[None, :]
    logit = tl.sum(total, 1) + tl.load(b2 + channel, mask=known, other=0.0).to(tl.float32)
    value, _ = value_and_slope(logit, GATE)
    tl.store(logits + image * channels + channel, logit, mask=known)
    tl.store(scale + image * channels + channel, value, mask=known)


@triton.jit(do_not_specialize=["channels", "squeezed", "per_image"])
def excite_gradient(
    a1,
    w2,
    hidden,
    logits,
    scale,
    dlogits,
    dhidden,
    channels,
    squeezed,
    per_image,
    ACTIVATION: tl.constexpr,
    GATE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """From ds = Σ g z: dlogits (N, C), dhidden (N, S) before its activation; and the scale anew from the logits."""
    blocks = tl.cdiv(squeezed, BLOCK_S)
    image = tl.program_id(0) // blocks
    s = tl.program_id(0) % blocks * BLOCK_S + tl.arange(0, BLOCK_S)
    total = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for first in range(0, channels, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        known = channel < channels
        value, slope = value_and_slope(tl.load(logits + image * channels + channel, mask=known, other=0.0), GATE)
        dlogit = slope * sum_parts(a1, image, per_image, channels, channel, known)
        if tl.program_id(0) % blocks == 0:
            tl.store(scale + image * channels + channel, value, mask=known)
            tl.store(dlogits + image * channels + channel, dlogit, mask=known)
        inside = (s[:, None] < squeezed) & known[None, :]
        weight = tl.load(w2 + channel[None, :] * squeezed + s[:, None], mask=inside, other=0.0).to(tl.float32)
        total += weight * tl.where(known, dlogit, 0.0)[None, :]
    _, slope = value_and_slope(tl.load(hidden + image * squeezed + s, mask=s < squeezed, other=0.0), ACTIVATION)
    tl.store(dhidden + image * squeezed + s, tl.sum(total, 1) * slope, mask=s < squeezed)


@triton.jit(do_not_specialize=["channels", "squeezed", "pixels"])
def excite_pooled(
    dhidden,
    w1,
    dpooled,
    channels,
    squeezed,
    pixels,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dpooled (N, C) = W1ᵀ dhidden / (H·W): what every pixel of the channel gets."""
    blocks = tl.cdiv(channels, BLOCK_C)
    image = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < channels
    total = tl.zeros([BLOCK_C, BLOCK_S], tl.float32)
    for first in range(0, squeezed, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        d = tl.load(dhidden + image * squeezed + s, mask=s < squeezed, other=0.0)
        inside = known[:, None] & (s[None, :] < squeezed)
        weight = tl.load(w1 + s[None, :] * channels + channel[:, None], mask=inside, other=0.0).to(tl.float32)
        total += weight * d[None, :]
    tl.store(dpooled + image * channels + channel, tl.sum(total, 1) / pixels, mask=known)


@triton.jit(do_not_specialize=["images", "channels", "squeezed"])
def excite_weights(
    pooled,
    hidden,
    dlogits,
    dhidden,
    dw1,
    db1,
    dw2,
    db2,
    images,
    channels,
    squeezed,
    ACTIVATION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dW1 = dhiddenᵀ pooled, dW2 = dlogitsᵀ act(hidden), and the biases' gradients, all summed over images in order."""
    blocks = tl.cdiv(channels, BLOCK_C)
    channel = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    s = tl.program_id(0) // blocks * BLOCK_S + tl.arange(0, BLOCK_S)
    known_c = channel < channels
    known_s = s < squeezed
    sum_w1 = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    sum_w2 = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    sum_b1 = tl.zeros([BLOCK_S], tl.float32)
    sum_b2 = tl.zeros([BLOCK_C], tl.float32)
    for first in range(0, images, BLOCK_N):
        image = first + tl.arange(0, BLOCK_N)
        of_channels = (image[:, None] < images) & known_c[None, :]
        of_squeezed = (image[None, :] < images) & known_s[:, None]
        at_channel = image[:, None] * channels + channel[None, :]
        at_squeezed = image[None, :] * squeezed + s[:, None]
        p = tl.load(pooled + at_channel, mask=of_channels, other=0.0)
        dl = tl.load(dlogits + at_channel, mask=of_channels, other=0.0)
        dh = tl.load(dhidden + at_squeezed, mask=of_squeezed, other=0.0)
        h, _ = value_and_slope(tl.load(hidden + at_squeezed, mask=of_squeezed, other=0.0), ACTIVATION)
        sum_w1 = tl.dot(dh, p, sum_w1, input_precision="ieee")
        sum_w2 = tl.dot(tl.where(of_squeezed, h, 0.0), dl, sum_w2, input_precision="ieee")
        sum_b1 += tl.sum(dh, 1)
        sum_b2 += tl.sum(dl, 0)
    both = known_s[:, None] & known_c[None, :]
    tl.store(dw1 + s[:, None] * channels + channel[None, :], sum_w1.to(dw1.dtype.element_ty), mask=both)
    tl.store(dw2 + channel[None, :] * squeezed + s[:, None], sum_w2.to(dw2.dtype.element_ty), mask=both)
    if tl.program_id(0) % blocks == 0:
        tl.store(db1 + s, sum_b1.to(db1.dtype.element_ty), mask=known_s)
    if tl.program_id(0) // blocks == 0:
        tl.store(db2 + channel, sum_b2.to(db2.dtype.element_ty), mask=known_c)


BLOCK_S = 16
BLOCK_C = 64
BLOCK_N = 32
_LAYERS = {"BLOCK_S": BLOCK_S, "BLOCK_C": BLOCK_C}


class Pooled(NamedTuple):
    """Σ z over parts of images, (N · per_image, C); and (N, C) the sums A3 and A5 over images, where there is a BN."""

    z_sum: Tensor
    per_image: int
    a3: Tensor | None
    a5: Tensor | None


class Weights(NamedTuple):
    """The two layers."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor

    @property
    def squeezed(self) -> int:
        return self.w1.shape[0]


class Excited(NamedTuple):
    """(N, C), (N, S), (N, C) and (N, C): what backward needs, and the scale."""

    pooled: Tensor
    hidden: Tensor
    logits: Tensor
    scale: Tensor


class ExciteGradient(NamedTuple):
    """The gradient of every pixel through the pooling, (N, C), the scale again, and the weights' gradients."""

    dpooled: Tensor
    scale: Tensor
    dw1: Tensor
    db1: Tensor
    dw2: Tensor
    db2: Tensor


def pooled_sums(y: Tensor, bn: Normalization) -> Pooled:
    """One pass over ``y``."""
    stream = Stream.reading(y)
    parts = Parts.of(stream.images, stream.row_tiles, stream.channel_blocks)
    z_sum = vector(y, parts.count, stream.channels)
    a3, a5 = (None, None) if bn.mean is None else (torch.empty_like(z_sum), torch.empty_like(z_sum))
    programs = parts.count * stream.channel_blocks
    tensors = (y, *bn.tensors, z_sum, a3, a5)
    launch(pool, programs, *tensors, *stream.sizes, *parts.arguments, bn.eps, ACTIVATION=bn.activation, **stream.blocks)
    merged = (_per_image(t, stream.images, parts.per_group) for t in (a3, a5))
    return Pooled(z_sum, parts.per_group, *merged)


def _per_image(sums: Tensor | None, images: int, per_image: int) -> Tensor | None:
    if sums is None or per_image == 1:
        return sums
    out = vector(sums, images, sums.shape[1])
    blocks = triton.cdiv(sums.shape[1], BLOCK_C)
    launch(merge_parts, images * blocks, sums, out, sums.shape[1], per_image, BLOCK_C=BLOCK_C)
    return out


def excited(z_sum: Tensor, per_image: int, pixels: int, se: Weights, activation: int, gate: int) -> Excited:
    """Both layers over the means of z."""
    images, channels = z_sum.shape[0] // max(per_image, 1), z_sum.shape[1]
    result = Excited(
        vector(z_sum, images, channels),
        vector(z_sum, images, se.squeezed),
        vector(z_sum, images, channels),
        vector(z_sum, images, channels),
    )
    programs = images * triton.cdiv(se.squeezed, BLOCK_S)
    tensors = (z_sum, *packed(se.w1, se.b1), result.pooled, result.hidden)
    launch(excite_hidden, programs, *tensors, channels, se.squeezed, per_image, pixels, **_LAYERS)
    programs = images * triton.cdiv(channels, BLOCK_C)
    tensors = (result.hidden, *packed(se.w2, se.b2), result.logits, result.scale)
    launch(excite_scale, programs, *tensors, channels, se.squeezed, ACTIVATION=activation, GATE=gate, **_LAYERS)
    return result


def excite_backward(
    a1: Tensor,
    per_image: int,
    pixels: int,
    se: Weights,
    pooled: Tensor,
    hidden: Tensor,
    logits: Tensor,
    activation: int,
    gate: int,
) -> ExciteGradient:
    """Both layers backward from Σ g z."""
    images, channels = pooled.shape
    squeezed = se.squeezed
    scale, dlogits, dhidden, dpooled = (torch.empty_like(t) for t in (logits, logits, hidden, pooled))
    w1, w2 = packed(se.w1, se.w2)
    gradients = tuple(t.new_empty(t.shape) for t in se)
    codes = {"ACTIVATION": activation, "GATE": gate}
    programs = images * triton.cdiv(squeezed, BLOCK_S)
    of_logits = (a1, w2, hidden, logits, scale, dlogits, dhidden)
    launch(excite_gradient, programs, *of_logits, channels, squeezed, per_image, **codes, **_LAYERS)
    programs = images * triton.cdiv(channels, BLOCK_C)
    launch(excite_pooled, programs, dhidden, w1, dpooled, channels, squeezed, pixels, **_LAYERS)
    programs = triton.cdiv(channels, BLOCK_C) * triton.cdiv(squeezed, BLOCK_S)
    tensors = (pooled, hidden, dlogits, dhidden, *gradients)
    blocks = {"BLOCK_N": BLOCK_N, **_LAYERS}
    launch(excite_weights, programs, *tensors, images, channels, squeezed, ACTIVATION=activation, **blocks)
    return ExciteGradient(dpooled, scale, *(as_parameter(d, t) for d, t in zip(gradients, se, strict=True)))


def forward(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: int, gate: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator ``squeeze_excite``: out, the means, the hidden layer and the gate's input."""
    sums = pooled_sums(x, NO_NORMALIZATION)
    pixels = x.shape[2] * x.shape[3]
    se = excited(sums.z_sum, sums.per_image, pixels, Weights(w1, b1, w2, b2), activation, gate)
    return normalized(x, NO_NORMALIZATION, scale=se.scale), se.pooled, se.hidden, se.logits


def backward(
    grad: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    pooled: Tensor,
    hidden: Tensor,
    logits: Tensor,
    activation: int,
    gate: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator ``squeeze_excite_backward``."""
    sums = summed_backward(grad, x, NO_NORMALIZATION, scaled=True)
    assert sums.a1 is not None
    se, pixels = Weights(w1, b1, w2, b2), x.shape[2] * x.shape[3]
    d = excite_backward(sums.a1, sums.per_image, pixels, se, pooled, hidden, logits, activation, gate)
    dx = input_gradient_of(grad, x, NO_NORMALIZATION, DzTerms(scale=d.scale, dpooled=d.dpooled))
    return dx, d.dw1, d.db1, d.dw2, d.db2
