"""``depthwise_conv_bn_act`` in Triton: act(BN(dwconv(x))).

Kernels, beside those of triton/batch_norm_act.py::

    depthwise_forward   x → y = dwconv(x), and y's (count, mean, M2); or act(BN(y)), and its sums over images
    depthwise_backward  u or x, dy → dx (or dv1), parts of dW and of BN1's sums
    depthwise_sum       parts → dW, dγ1, dβ1 and the means that BN1's input gradient subtracts

A tap is read from memory (the L1 cache, mostly), for Triton has no shared memory that a program could address. What a
tap needs is therefore materialised once instead of recomputed K² times: dy before depthwise_backward, here, and
act(BN1(u)) before depthwise_forward, in triton/mbconv_core.py.

Memory traffic (Ein, Eout: elements of x and of out): Ein + 3 Eout forward in training, Ein + Eout in inference,
2 Ein + 6 Eout backward, of which 2 Eout are dy, written and read again.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from effnet_kernels.triton.activation import value_and_slope
from effnet_kernels.triton.batch_norm_act import (
    NO_NORMALIZATION,
    NO_TERMS,
    BatchNormGradient,
    Normalization,
    batch_norm_constants,
    input_gradient_of,
    normalized,
    summed_backward,
    summed_batch_norm_gradient,
)
from effnet_kernels.triton.convolution import Convolution, Tiles
from effnet_kernels.triton.launch import as_parameter, launch, sum_blocks, vector
from effnet_kernels.triton.statistics import merged_statistics
from effnet_kernels.triton.tile import Parts, merge_tile, units_of_part


@triton.jit
def pixel_tile(unit, tiles, tile_columns, height, width, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """Image, rows, columns and which are inside, for tile ``unit`` % ``tiles`` of BLOCK_H × BLOCK_W pixels."""
    tile = unit % tiles
    lane = tl.arange(0, BLOCK_H * BLOCK_W)
    row = tile // tile_columns * BLOCK_H + lane // BLOCK_W
    column = tile % tile_columns * BLOCK_W + lane % BLOCK_W
    return unit // tiles, row, column, (row < height) & (column < width)


_SHARES = ["parts_per_group", "units_per_part", "units_per_group"]
_SIZES = ["height", "width", "out_height", "out_width", "top", "left", "tiles", "tile_columns", "parts"]


@triton.jit(do_not_specialize=[*_SHARES, *_SIZES, "eps"])
def depthwise_forward(
    x,
    w,
    gamma,
    beta,
    mean,
    var,
    out,
    moments,
    z_sum,
    channels,
    height,
    width,
    out_height,
    out_width,
    top,
    left,
    parts_per_group,
    units_per_part,
    units_per_group,
    tiles,
    tile_columns,
    parts,
    eps,
    ACTIVATION: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """out = dwconv(x), or act(BN(dwconv(x))) where ``mean`` is given.

    moments (3, parts, C), if any: count, mean and M2 of what was written over each part; z_sum (parts, C), if any: the
    sum of act(BN(y)) over each part. A unit is one tile of one image, in registers as float32.
    """
    blocks = tl.cdiv(channels, BLOCK_C)
    part = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < channels
    first, last = units_of_part(part, parts_per_group, units_per_part, units_per_group)
    known_c = known[:, None]
    step = channels if CHANNELS_LAST else 1
    in_channel = channel[:, None] if CHANNELS_LAST else channel[:, None] * (height * width)
    out_channel = channel[:, None] if CHANNELS_LAST else channel[:, None] * (out_height * out_width)
    count = tl.zeros([BLOCK_C], tl.float32)
    average = tl.zeros([BLOCK_C], tl.float32)
    m2 = tl.zeros([BLOCK_C], tl.float32)
    total = tl.zeros([BLOCK_C], tl.float32)
    if mean is not None:
        g, b, mu, rstd = batch_norm_constants(gamma, beta, mean, var, channel[:, None], known_c, eps)
    for unit in range(first, last):
        image, row, column, inside = pixel_tile(unit, tiles, tile_columns, out_height, out_width, BLOCK_H, BLOCK_W)
        x_image = x + image.to(tl.int64) * height * width * channels
        out_image = out + image.to(tl.int64) * out_height * out_width * channels
        y = tl.zeros([BLOCK_C, BLOCK_H * BLOCK_W], tl.float32)
        for p in range(KERNEL):
            in_row = row * STRIDE + (p - top)
            row_seen = inside & (in_row >= 0) & (in_row < height)
            for q in range(KERNEL):
                in_column = column * STRIDE + (q - left)
                seen = row_seen & (in_column >= 0) & (in_column < width)
                at = in_channel + ((in_row * width + in_column) * step)[None, :]
                tap = tl.load(x_image + at, mask=known_c & seen[None, :], other=0.0)
                weight = tl.load(w + channel * (KERNEL * KERNEL) + (p * KERNEL + q), mask=known, other=0.0)
                y += tap.to(tl.float32) * weight.to(tl.float32)[:, None]
        both = known_c & inside[None, :]
        if mean is not None:
            y, _ = value_and_slope((y - mu) * (g * rstd) + b, ACTIVATION)
        stored = y.to(out.dtype.element_ty)
        tl.store(out_image + (out_channel + ((row * out_width + column) * step)[None, :]), stored, mask=both)
        if moments is not None:
            count, average, m2 = merge_tile(count, average, m2, stored.to(tl.float32), both)
        if z_sum is not None:
            total += tl.sum(tl.where(both, y, 0.0), 1)
    entry = part * channels + channel
    if moments is not None:
        tl.store(moments + entry, count, mask=known)
        tl.store(moments + parts * channels + entry, average, mask=known)
        tl.store(moments + 2 * parts * channels + entry, m2, mask=known)
    if z_sum is not None:
        tl.store(z_sum + entry, total, mask=known)


@triton.jit(do_not_specialize=[*_SHARES, *_SIZES, "eps"])
def depthwise_backward(
    u,
    dy,
    w,
    gamma,
    beta,
    mean,
    var,
    dx,
    partial,
    channels,
    height,
    width,
    out_height,
    out_width,
    top,
    left,
    parts_per_group,
    units_per_part,
    units_per_group,
    tiles,
    tile_columns,
    parts,
    eps,
    ACTIVATION: tl.constexpr,
    CONSTANT_STATISTICS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """da = dwconvᵀ(dy) over a tile of the input, and dW[p, q] = Σ a · dy at the output that sees it through (p, q).

    With BN1 (``mean`` given): a = act(BN1(u)); dx is dv1 = da φ'(v1), or γ1 r1 dv1 with CONSTANT_STATISTICS; and the
    last two rows of ``partial`` are Σ dv1 and Σ dv1 û. Without: a = u and dx = da. u, once, and the K² values of dy
    pass through registers; partial (parts, K² or K² + 2, C) is written once per program.
    """
    blocks = tl.cdiv(channels, BLOCK_C)
    part = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < channels
    first, last = units_of_part(part, parts_per_group, units_per_part, units_per_group)
    known_c = known[:, None]
    step = channels if CHANNELS_LAST else 1
    in_channel = channel[:, None] if CHANNELS_LAST else channel[:, None] * (height * width)
    out_channel = channel[:, None] if CHANNELS_LAST else channel[:, None] * (out_height * out_width)
    k = tl.arange(0, BLOCK_K)
    sums = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
    if mean is not None:
        g, b, mu, rstd = batch_norm_constants(gamma, beta, mean, var, channel[:, None], known_c, eps)
    for unit in range(first, last):
        image, row, column, inside = pixel_tile(unit, tiles, tile_columns, height, width, BLOCK_H, BLOCK_W)
        u_image = u + image.to(tl.int64) * height * width * channels
        dy_image = dy + image.to(tl.int64) * out_height * out_width * channels
        both = known_c & inside[None, :]
        offsets = in_channel + ((row * width + column) * step)[None, :]
        a = tl.load(u_image + offsets, mask=both, other=0.0).to(tl.float32)
        if mean is not None:
            normalized = (a - mu) * rstd
            a, slope = value_and_slope(g * normalized + b, ACTIVATION)
        da = tl.zeros([BLOCK_C, BLOCK_H * BLOCK_W], tl.float32)
        for p in range(KERNEL):
            strided_row = row + (top - p)
            out_row = strided_row // STRIDE
            row_seen = inside & (strided_row >= 0) & (out_row < out_height)
            if STRIDE != 1:
                row_seen = row_seen & (strided_row % STRIDE == 0)
            for q in range(KERNEL):
                strided_column = column + (left - q)
                out_column = strided_column // STRIDE
                seen = row_seen & (strided_column >= 0) & (out_column < out_width)
                if STRIDE != 1:
                    seen = seen & (strided_column % STRIDE == 0)
                seen_both = known_c & seen[None, :]
                at = out_channel + ((out_row * out_width + out_column) * step)[None, :]
                d = tl.load(dy_image + at, mask=seen_both, other=0.0).to(tl.float32)
                weight = tl.load(w + channel * (KERNEL * KERNEL) + (p * KERNEL + q), mask=known, other=0.0)
                da += d * weight.to(tl.float32)[:, None]
                # Not a · d where the tap is outside: a may be infinite there.
                product = tl.sum(tl.where(seen_both, a * d, 0.0), 1)
                sums += tl.where((k == p * KERNEL + q)[:, None], product[None, :], 0.0)
        if mean is not None:
            dv = tl.where(both, da * slope, 0.0)
            sums += tl.where((k == KERNEL * KERNEL)[:, None], tl.sum(dv, 1)[None, :], 0.0)
            sums += tl.where((k == KERNEL * KERNEL + 1)[:, None], tl.sum(dv * normalized, 1)[None, :], 0.0)
            da = dv * (g * rstd) if CONSTANT_STATISTICS else dv
        tl.store(dx + image.to(tl.int64) * height * width * channels + offsets, da.to(dx.dtype.element_ty), mask=both)
    rows = KERNEL * KERNEL if mean is None else KERNEL * KERNEL + 2
    entry = (part * rows + k[:, None]) * channels + channel[None, :]
    tl.store(partial + entry, sums, mask=(k[:, None] < rows) & known[None, :])


@triton.jit(do_not_specialize=["channels", "parts", "count"])
def depthwise_sum(
    partial,
    dw,
    dgamma,
    dbeta,
    mean_dv,
    mean_dv_x,
    channels,
    parts,
    count,
    TAPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """The sums of ``partial`` (parts, rows, C) over parts: dW, and dβ1 and dγ1 where there is a BN1.

    mean_dv and mean_dv_x (C,) are dβ1/M and dγ1/M, None where BN1's statistics are constants. One program sums one row.
    """
    rows = TAPS if dgamma is None else TAPS + 2
    k = tl.program_id(0) % rows
    channel = tl.program_id(0) // rows * BLOCK_C + tl.arange(0, BLOCK_C)
    sums = tl.zeros([BLOCK_C, BLOCK_R], tl.float32)
    for first in range(0, parts, BLOCK_R):
        part = first + tl.arange(0, BLOCK_R)[None, :]
        inside = (part < parts) & (channel[:, None] < channels)
        sums += tl.load(partial + (part * rows + k) * channels + channel[:, None], mask=inside, other=0.0)
    total = tl.sum(sums, 1)
    known = channel < channels
    if k < TAPS:
        tl.store(dw + channel * TAPS + k, total.to(dw.dtype.element_ty), mask=known)
    if dgamma is not None:
        if k == TAPS:
            tl.store(dbeta + channel, total.to(dbeta.dtype.element_ty), mask=known)
            if mean_dv is not None:
                tl.store(mean_dv + channel, total / count, mask=known)
        if k == TAPS + 1:
            tl.store(dgamma + channel, total.to(dgamma.dtype.element_ty), mask=known)
            if mean_dv is not None:
                tl.store(mean_dv_x + channel, total / count, mask=known)


def convolved(x: Tensor, w: Tensor, convolution: Convolution) -> tuple[Tensor, Tensor]:
    """y, and its moments (3, parts, C)."""
    tiles = convolution.tiles(convolution.out_height, convolution.out_width)
    parts = tiles.parts()
    y = convolution.empty_output(x)
    moments = vector(x, 3, parts.count, convolution.channels)
    _launch_forward(x, w, NO_NORMALIZATION, y, moments, None, tiles, parts)
    return y, moments


class Inferred(NamedTuple):
    """z = act(BN(dwconv(x))), and Σ z over parts of images, where it was asked for."""

    z: Tensor
    z_sum: Tensor | None
    per_image: int


def convolved_in_inference(
    x: Tensor, w: Tensor, bn: Normalization, convolution: Convolution, *, pooled: bool
) -> Inferred:
    """BN and activation applied to the convolution's output before it is written."""
    tiles = convolution.tiles(convolution.out_height, convolution.out_width)
    parts = tiles.parts(per_image=pooled)
    z = convolution.empty_output(x)
    z_sum = vector(x, parts.count, convolution.channels) if pooled else None
    _launch_forward(x, w, bn, z, None, z_sum, tiles, parts)
    return Inferred(z, z_sum, parts.per_group)


def _launch_forward(
    x: Tensor,
    w: Tensor,
    bn: Normalization,
    out: Tensor,
    moments: Tensor | None,
    z_sum: Tensor | None,
    tiles: Tiles,
    parts: Parts,
) -> None:
    shares = (*parts.arguments, tiles.per_image, tiles.columns, parts.count)
    launch(
        depthwise_forward,
        parts.count * tiles.channel_blocks,
        x,
        w.contiguous(),
        *bn.tensors,
        out,
        moments,
        z_sum,
        *tiles.convolution.sizes,
        *shares,
        bn.eps,
        ACTIVATION=bn.activation,
        **tiles.blocks,
    )


class DepthwiseGradient(NamedTuple):
    """dx (dv1 in training with BN1), dW, and BN1's gradients, where it is there."""

    dx: Tensor
    dw: Tensor
    bn1: BatchNormGradient | None


def convolution_gradient(
    u: Tensor, dy: Tensor, w: Tensor, bn1: Normalization, convolution: Convolution, *, training1: bool
) -> DepthwiseGradient:
    """Input and weight gradient of dwconv(act(BN1(u))) from dy."""
    tiles = convolution.tiles(convolution.height, convolution.width)
    parts = tiles.parts()
    taps, has_bn1 = convolution.kernel**2, bn1.mean is not None
    channels = convolution.channels
    dx = torch.empty_like(u)
    weight = w.contiguous()
    partial = vector(u, parts.count, taps + 2 * has_bn1, channels)
    launch(
        depthwise_backward,
        parts.count * tiles.channel_blocks,
        u,
        dy,
        weight,
        *bn1.tensors,
        dx,
        partial,
        *convolution.sizes,
        *parts.arguments,
        tiles.per_image,
        tiles.columns,
        parts.count,
        bn1.eps,
        ACTIVATION=bn1.activation,
        CONSTANT_STATISTICS=has_bn1 and not training1,
        BLOCK_K=triton.next_power_of_2(taps + 2),
        **tiles.blocks,
    )
    dw = torch.empty_like(weight)
    bn1_gradient = None
    if bn1.gamma is not None and bn1.beta is not None:
        means = (vector(u, channels), vector(u, channels)) if training1 else (None, None)
        bn1_gradient = BatchNormGradient(torch.empty_like(bn1.gamma), torch.empty_like(bn1.beta), *means)
    count = float(max(u.numel() // channels, 1))
    blocks = sum_blocks(parts.count)
    programs = (taps + 2 * has_bn1) * triton.cdiv(channels, blocks["BLOCK_C"])
    outputs = (None,) * 4 if bn1_gradient is None else bn1_gradient
    launch(depthwise_sum, programs, partial, dw, *outputs, channels, parts.count, count, TAPS=taps, **blocks)
    return DepthwiseGradient(dx, as_parameter(dw, w), bn1_gradient)


def forward(
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
    """The operator ``depthwise_conv_bn_act``: out, y, and y's mean and variance where they were not given."""
    y, moments = convolved(x, w, Convolution.of(x, w, stride, padding))
    batch_mean, batch_var = merged_statistics(moments) if mean is None else (vector(x, 0), vector(x, 0))
    statistics = (batch_mean, batch_var) if mean is None else (mean, var)
    return normalized(y, Normalization(gamma, beta, *statistics, eps, activation)), y, batch_mean, batch_var


def inference(
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
    """The operator ``depthwise_conv_bn_act_inference``."""
    bn = Normalization(gamma, beta, mean, var, eps, activation)
    return convolved_in_inference(x, w, bn, Convolution.of(x, w, stride, padding), pooled=False).z


def backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    w: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    training: bool,
    stride: int,
    padding: Sequence[int],
    eps: float,
    activation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator ``depthwise_conv_bn_act_backward``."""
    bn = Normalization(gamma, beta, mean, var, eps, activation)
    sums = summed_backward(grad, y, bn, scaled=False)
    count = y.numel() // y.shape[1]
    gradient = summed_batch_norm_gradient(sums, NO_TERMS, gamma, beta, count, training=training)
    dy = input_gradient_of(grad, y, bn, NO_TERMS, gradient)
    convolution = Convolution.of(x, w, stride, padding)
    d = convolution_gradient(x, dy, w, NO_NORMALIZATION, convolution, training1=False)
    return d.dx, d.dw, gradient.dgamma, gradient.dbeta
