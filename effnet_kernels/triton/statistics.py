"""Mean and variance of every channel in one pass over x, right for a large mean; and the update of running statistics.

``statistics`` writes (count, mean, M2) of parts, ``merge_statistics`` merges them in a fixed order. Memory traffic in
units of x: 1 read. Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm".
"""

import triton
import triton.language as tl
from torch import Tensor

from effnet_kernels.triton.launch import launch, sum_blocks, vector
from effnet_kernels.triton.tile import Parts, Stream, merge_tile, row_tile, units_of_part


@triton.jit(do_not_specialize=["parts_per_group", "units_per_part", "units_per_group", "tiles", "parts"])
def statistics(
    x,
    moments,
    channels,
    pixels,
    elements,
    parts_per_group,
    units_per_part,
    units_per_group,
    tiles,
    parts,
    LAYOUT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """moments (3, parts, C): count, mean and M2 of x over the tiles of every part; a unit is one tile of one image."""
    blocks = tl.cdiv(channels, BLOCK_C)
    part = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    first, last = units_of_part(part, parts_per_group, units_per_part, units_per_group)
    count = tl.zeros([BLOCK_C], tl.float32)
    mean = tl.zeros([BLOCK_C], tl.float32)
    m2 = tl.zeros([BLOCK_C], tl.float32)
    for unit in range(first, last):
        pixel = unit % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
        offsets, readable, inside = row_tile(channel[:, None], pixel[None, :], channels, pixels, elements, LAYOUT)
        image = x + (unit // tiles).to(tl.int64) * elements
        v = tl.load(image + offsets, mask=readable, other=0.0).to(tl.float32)
        count, mean, m2 = merge_tile(count, mean, m2, v, inside)
    row = moments + part * channels + channel
    tl.store(row, count, mask=channel < channels)
    tl.store(row + parts * channels, mean, mask=channel < channels)
    tl.store(row + 2 * parts * channels, m2, mask=channel < channels)


@triton.jit(do_not_specialize=["channels", "parts"])
def merge_statistics(
    moments,
    mean,
    var,
    channels,
    parts,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """mean and biased variance (C,) from the parts' moments: few numbers, so in float64."""
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    count = tl.zeros([BLOCK_C, BLOCK_R], tl.float64)
    weighted = tl.zeros([BLOCK_C, BLOCK_R], tl.float64)
    for first in range(0, parts, BLOCK_R):
        part = first + tl.arange(0, BLOCK_R)[None, :]
        inside = (part < parts) & (channel < channels)
        row = moments + part * channels + channel
        part_count = tl.load(row, mask=inside, other=0.0).to(tl.float64)
        count += part_count
        weighted += part_count * tl.load(row + parts * channels, mask=inside, other=0.0)
    total = tl.maximum(tl.sum(count, 1), 1.0)
    merged = tl.sum(weighted, 1) / total
    m2 = tl.zeros([BLOCK_C, BLOCK_R], tl.float64)
    for first in range(0, parts, BLOCK_R):
        part = first + tl.arange(0, BLOCK_R)[None, :]
        inside = (part < parts) & (channel < channels)
        row = moments + part * channels + channel
        delta = tl.load(row + parts * channels, mask=inside, other=0.0) - merged[:, None]
        m2 += tl.load(row, mask=inside, other=0.0) * delta * delta
        m2 += tl.load(row + 2 * parts * channels, mask=inside, other=0.0)
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    tl.store(mean + column, merged.to(tl.float32), mask=column < channels)
    tl.store(var + column, (tl.sum(m2, 1) / total).to(tl.float32), mask=column < channels)


@triton.jit(do_not_specialize=["mean_stride", "var_stride", "channels", "unbiased", "momentum"])
def move_running_stats(
    running_mean,
    running_var,
    mean,
    var,
    mean_stride,
    var_stride,
    channels,
    unbiased,
    momentum,
    BLOCK_C: tl.constexpr,
):
    """running ← (1 − momentum) · running + momentum · batch; the variance times ``unbiased`` = M / (M − 1)."""
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < channels
    old_mean = tl.load(running_mean + channel * mean_stride, mask=known).to(tl.float32)
    old_var = tl.load(running_var + channel * var_stride, mask=known).to(tl.float32)
    new_mean = (1 - momentum) * old_mean + momentum * tl.load(mean + channel, mask=known)
    new_var = (1 - momentum) * old_var + momentum * unbiased * tl.load(var + channel, mask=known)
    tl.store(running_mean + channel * mean_stride, new_mean.to(running_mean.dtype.element_ty), mask=known)
    tl.store(running_var + channel * var_stride, new_var.to(running_var.dtype.element_ty), mask=known)


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of every channel of ``x``, float32."""
    stream = Stream.reading(x)
    parts = Parts.of(1, stream.images * stream.row_tiles, stream.channel_blocks)
    moments = vector(x, 3, parts.count, stream.channels)
    programs = parts.count * stream.channel_blocks
    launch(
        statistics,
        programs,
        x,
        moments,
        *stream.sizes,
        *parts.arguments,
        stream.row_tiles,
        parts.count,
        **stream.blocks,
    )
    return merged_statistics(moments)


def merged_statistics(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) from (3, parts, C): counts, means and M2."""
    _, parts, channels = moments.shape
    mean, var = vector(moments, channels), vector(moments, channels)
    blocks = sum_blocks(parts)
    programs = triton.cdiv(channels, blocks["BLOCK_C"])
    launch(merge_statistics, programs, moments, mean, var, channels, parts, **blocks)
    return mean, var


def update_running_stats_(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, count: int, momentum: float
) -> None:
    """The operator ``update_running_stats_``: move the running statistics toward a batch of ``count`` values."""
    channels, block = running_mean.numel(), 1024
    unbiased = count / max(count - 1, 1)
    arguments = (running_mean, running_var, mean, var, running_mean.stride(0), running_var.stride(0))
    launch(move_running_stats, triton.cdiv(channels, block), *arguments, channels, unbiased, momentum, BLOCK_C=block)
