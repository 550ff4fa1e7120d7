"""``batch_norm_act`` in Triton: act(BN(x)) · keep[n] (+ residual).

Kernels, beside those of triton/statistics.py::

    normalize           x → act(BN(x)) · factor (+ residual)
    backward_sums       grad, y → Σ g z, Σ g φ'(v), Σ g φ'(v) ŷ of parts of images
    batch_norm_gradient → dγ, dβ and the means that input_gradient subtracts
    input_gradient      grad, x → dx

Memory traffic in units of x: 2 reads + 1 write forward (1 read in inference), 4 reads + 1 write backward.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from effnet_kernels.activations import CODES
from effnet_kernels.triton.activation import value_and_slope
from effnet_kernels.triton.launch import launch, packed, sum_blocks, vector
from effnet_kernels.triton.statistics import batch_statistics
from effnet_kernels.triton.tile import Parts, Stream, element_tile, row_tile, units_of_part


@triton.jit
def batch_norm_constants(gamma, beta, mean, var, channel, inside, eps):
    """γ, β, μ and 1/√(σ² + eps) of ``channel``, in float32."""
    rstd = 1 / tl.sqrt(tl.load(var + channel, mask=inside, other=1.0).to(tl.float32) + eps)
    return (
        tl.load(gamma + channel, mask=inside, other=0.0).to(tl.float32),
        tl.load(beta + channel, mask=inside, other=0.0).to(tl.float32),
        tl.load(mean + channel, mask=inside, other=0.0).to(tl.float32),
        rstd,
    )


@triton.jit(do_not_specialize=["tiles", "eps"])
def normalize(
    x,
    gamma,
    beta,
    mean,
    var,
    keep,
    scale,
    residual,
    out,
    channels,
    pixels,
    elements,
    tiles,
    eps,
    ACTIVATION: tl.constexpr,
    LAYOUT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """out = act(BN(x)) · keep[n] · scale[n, c] + residual; no BatchNorm and activation where ``mean`` is None."""
    image = tl.program_id(0) // tiles
    offsets, channel, inside = element_tile(
        tl.program_id(0) % tiles, channels, pixels, elements, LAYOUT, BLOCK_C, BLOCK_P
    )
    offsets = image.to(tl.int64) * elements + offsets
    known = channel < channels
    v = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    if mean is not None:
        g, b, mu, rstd = batch_norm_constants(gamma, beta, mean, var, channel, known, eps)
        v, _ = value_and_slope((v - mu) * (g * rstd) + b, ACTIVATION)
    if keep is not None:
        v *= tl.load(keep + image).to(tl.float32)
    if scale is not None:
        v *= tl.load(scale + image * channels + channel, mask=known, other=0.0)
    if residual is not None:
        v += tl.load(residual + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + offsets, v.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["parts_per_group", "units_per_part", "units_per_group", "eps"])
def backward_sums(
    grad,
    y,
    gamma,
    beta,
    mean,
    var,
    a1,
    a2,
    a4,
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
    """a1, a2, a4 (N·parts, C): Σ g z, Σ g φ'(v) and Σ g φ'(v) ŷ over each part of an image.

    a1 is None where nobody scales z; where ``mean`` is None, z is y itself and there is only a1.
    """
    blocks = tl.cdiv(channels, BLOCK_C)
    part = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < channels
    first, last = units_of_part(part, parts_per_group, units_per_part, units_per_group)
    sum_1 = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    sum_2 = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    sum_4 = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    image = (part // parts_per_group).to(tl.int64) * elements
    if mean is not None:
        g, b, mu, rstd = batch_norm_constants(gamma, beta, mean, var, channel[:, None], known[:, None], eps)
    for unit in range(first, last):
        pixel = unit % units_per_group * BLOCK_P + tl.arange(0, BLOCK_P)
        offsets, readable, inside = row_tile(channel[:, None], pixel[None, :], channels, pixels, elements, LAYOUT)
        # What lies outside the tile may be infinite, and is not of the sum.
        dz = tl.where(inside, tl.load(grad + image + offsets, mask=readable, other=0.0).to(tl.float32), 0.0)
        z = tl.where(inside, tl.load(y + image + offsets, mask=readable, other=0.0).to(tl.float32), 0.0)
        if mean is not None:
            normalized = (z - mu) * rstd
            z, slope = value_and_slope(g * normalized + b, ACTIVATION)
            dv = dz * slope
            sum_2 += dv
            sum_4 += dv * normalized
        if a1 is not None:
            sum_1 += dz * z
    row = part * channels + channel
    if a1 is not None:
        tl.store(a1 + row, tl.sum(sum_1, 1), mask=known)
    if mean is not None:
        tl.store(a2 + row, tl.sum(sum_2, 1), mask=known)
        tl.store(a4 + row, tl.sum(sum_4, 1), mask=known)


@triton.jit(do_not_specialize=["channels", "rows", "per_image", "count"])
def batch_norm_gradient(
    a2,
    a4,
    keep,
    scale,
    dpooled,
    a3,
    a5,
    dgamma,
    dbeta,
    mean_dv,
    mean_dv_x,
    channels,
    rows,
    per_image,
    count,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """dβ = Σ (f A2 + o A3) and dγ = Σ (f A4 + o A5) over images, f the factor of dz and o its offset.

    mean_dv and mean_dv_x (C,) are dβ/M and dγ/M, which the input gradient subtracts (None where the statistics are
    constants). A2 and A4 have ``per_image`` rows for each image, A3 and A5 one.
    """
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel = column[:, None]
    sum_beta = tl.zeros([BLOCK_C, BLOCK_R], tl.float32)
    sum_gamma = tl.zeros([BLOCK_C, BLOCK_R], tl.float32)
    for first in range(0, rows, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)[None, :]
        inside = (row < rows) & (channel < channels)
        image = row // per_image
        beta = tl.load(a2 + row * channels + channel, mask=inside, other=0.0)
        gamma = tl.load(a4 + row * channels + channel, mask=inside, other=0.0)
        if keep is not None:
            factor = tl.load(keep + image, mask=row < rows, other=0.0).to(tl.float32)
            beta *= factor
            gamma *= factor
        if scale is not None:
            factor = tl.load(scale + image * channels + channel, mask=inside, other=0.0)
            beta *= factor
            gamma *= factor
        if dpooled is not None:
            once = inside & (row % per_image == 0)
            offset = tl.load(dpooled + image * channels + channel, mask=once, other=0.0)
            beta += offset * tl.load(a3 + image * channels + channel, mask=once, other=0.0)
            gamma += offset * tl.load(a5 + image * channels + channel, mask=once, other=0.0)
        sum_beta += beta
        sum_gamma += gamma
    total_beta = tl.sum(sum_beta, 1)
    total_gamma = tl.sum(sum_gamma, 1)
    known = column < channels
    tl.store(dbeta + column, total_beta.to(dbeta.dtype.element_ty), mask=known)
    tl.store(dgamma + column, total_gamma.to(dgamma.dtype.element_ty), mask=known)
    if mean_dv is not None:
        tl.store(mean_dv + column, total_beta / count, mask=known)
        tl.store(mean_dv_x + column, total_gamma / count, mask=known)


@triton.jit(do_not_specialize=["tiles", "eps"])
def input_gradient(
    grad,
    x,
    gamma,
    beta,
    mean,
    var,
    keep,
    scale,
    dpooled,
    mean_dv,
    mean_dv_x,
    dx,
    channels,
    pixels,
    elements,
    tiles,
    eps,
    ACTIVATION: tl.constexpr,
    LAYOUT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dx = γ r (dv − mean_dv − x̂ mean_dv_x), dv = dz φ'(v), dz = grad · keep[n] · scale[n, c] + dpooled[n, c].

    dx = γ r dv where ``mean_dv`` is None (constant statistics), and dz where ``mean`` is None (no BatchNorm).
    dx may be grad itself.
    """
    image = tl.program_id(0) // tiles
    offsets, channel, inside = element_tile(
        tl.program_id(0) % tiles, channels, pixels, elements, LAYOUT, BLOCK_C, BLOCK_P
    )
    offsets = image.to(tl.int64) * elements + offsets
    known = channel < channels
    d = tl.load(grad + offsets, mask=inside, other=0.0).to(tl.float32)
    if keep is not None:
        d *= tl.load(keep + image).to(tl.float32)
    if scale is not None:
        d *= tl.load(scale + image * channels + channel, mask=known, other=0.0)
    if dpooled is not None:
        d += tl.load(dpooled + image * channels + channel, mask=known, other=0.0)
    if mean is not None:
        g, b, mu, rstd = batch_norm_constants(gamma, beta, mean, var, channel, known, eps)
        normalized = (tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32) - mu) * rstd
        _, slope = value_and_slope(g * normalized + b, ACTIVATION)
        d *= slope
        if mean_dv is not None:
            d -= tl.load(mean_dv + channel, mask=known, other=0.0)
            d -= normalized * tl.load(mean_dv_x + channel, mask=known, other=0.0)
        d *= g * rstd
    tl.store(dx + offsets, d.to(dx.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class Normalization:
    """A BatchNorm's constants, or none at all, and the activation after it."""

    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float
    activation: int

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return packed(self.gamma, self.beta, self.mean, self.var)


NO_NORMALIZATION = Normalization(None, None, None, None, 0.0, CODES["identity"])


def normalized(
    x: Tensor,
    bn: Normalization,
    *,
    keep: Tensor | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """act(BN(x)) · keep[n] · scale[n, c] + residual, into ``out`` (which may be ``x``) or a new tensor."""
    stream = Stream.writing(x)
    out = torch.empty_like(x) if out is None else out
    tensors = (*bn.tensors, *packed(keep), scale, residual, out)
    tiles = stream.element_tiles
    programs = stream.images * tiles
    launch(normalize, programs, x, *tensors, *stream.sizes, tiles, bn.eps, ACTIVATION=bn.activation, **stream.blocks)
    return out


class BackwardSums(NamedTuple):
    """Σ g z, Σ g φ'(v), Σ g φ'(v) ŷ, each (N · per_image, C), over parts of images."""

    a1: Tensor | None
    a2: Tensor | None
    a4: Tensor | None
    per_image: int


def summed_backward(grad: Tensor, y: Tensor, bn: Normalization, *, scaled: bool) -> BackwardSums:
    """The sums over (grad, y) that the gradients of BN and, where z is ``scaled``, of its scale need."""
    stream = Stream.reading(y)
    parts = Parts.of(stream.images, stream.row_tiles, stream.channel_blocks)

    def rows(wanted: bool) -> Tensor | None:
        return vector(y, parts.count, stream.channels) if wanted else None

    has_bn = bn.mean is not None
    sums = BackwardSums(rows(scaled), rows(has_bn), rows(has_bn), parts.per_group)
    programs = parts.count * stream.channel_blocks
    tensors = (grad, y, *bn.tensors, sums.a1, sums.a2, sums.a4)
    launch(
        backward_sums,
        programs,
        *tensors,
        *stream.sizes,
        *parts.arguments,
        bn.eps,
        ACTIVATION=bn.activation,
        **stream.blocks,
    )
    return sums


class DzTerms(NamedTuple):
    """dz = grad · keep[n] · scale[n, c] + dpooled[n, c]."""

    keep: Tensor | None = None
    scale: Tensor | None = None
    dpooled: Tensor | None = None


NO_TERMS = DzTerms()


class BatchNormGradient(NamedTuple):
    """dγ and dβ, and dβ/M and dγ/M where the statistics are the batch's."""

    dgamma: Tensor
    dbeta: Tensor
    mean_dv: Tensor | None
    mean_dv_x: Tensor | None


def summed_batch_norm_gradient(
    sums: BackwardSums,
    terms: DzTerms,
    gamma: Tensor,
    beta: Tensor,
    count: int,
    *,
    training: bool,
    a3: Tensor | None = None,
    a5: Tensor | None = None,
) -> BatchNormGradient:
    """The parameters' gradients from the sums of parts; a3 and a5 go with ``terms.dpooled``."""
    assert sums.a2 is not None
    rows, channels = sums.a2.shape
    means = (vector(sums.a2, channels), vector(sums.a2, channels)) if training else (None, None)
    gradient = BatchNormGradient(torch.empty_like(gamma), torch.empty_like(beta), *means)
    tensors = (sums.a2, sums.a4, *packed(*terms), a3, a5, *gradient)
    blocks = sum_blocks(rows)
    programs = triton.cdiv(channels, blocks["BLOCK_C"])
    launch(batch_norm_gradient, programs, *tensors, channels, rows, sums.per_image, float(max(count, 1)), **blocks)
    return gradient


def input_gradient_of(
    grad: Tensor,
    x: Tensor,
    bn: Normalization,
    terms: DzTerms = NO_TERMS,
    means: BatchNormGradient | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """dx, into ``out`` (which may be ``grad``) or a new tensor."""
    stream = Stream.writing(x)
    out = torch.empty_like(x) if out is None else out
    mean_dv, mean_dv_x = (None, None) if means is None else (means.mean_dv, means.mean_dv_x)
    tensors = (grad, x, *bn.tensors, *packed(*terms), mean_dv, mean_dv_x, out)
    tiles = stream.element_tiles
    programs = stream.images * tiles
    launch(input_gradient, programs, *tensors, *stream.sizes, tiles, bn.eps, ACTIVATION=bn.activation, **stream.blocks)
    return out


def forward(
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
    """The operator ``batch_norm_act``: out, and the batch's mean and variance where they were not given."""
    if mean is None or var is None:
        batch_mean, batch_var = batch_statistics(x)
        bn = Normalization(gamma, beta, batch_mean, batch_var, eps, activation)
    else:
        batch_mean, batch_var = vector(x, 0), vector(x, 0)
        bn = Normalization(gamma, beta, mean, var, eps, activation)
    return normalized(x, bn, keep=keep, residual=residual), batch_mean, batch_var


def backward(
    grad: Tensor,
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    keep: Tensor | None,
    training: bool,
    eps: float,
    activation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ``batch_norm_act_backward``."""
    bn = Normalization(gamma, beta, mean, var, eps, activation)
    terms = DzTerms(keep=keep)
    sums = summed_backward(grad, x, bn, scaled=False)
    count = x.numel() // x.shape[1]
    gradient = summed_batch_norm_gradient(sums, terms, gamma, beta, count, training=training)
    return input_gradient_of(grad, x, bn, terms, gradient), gradient.dgamma, gradient.dbeta
