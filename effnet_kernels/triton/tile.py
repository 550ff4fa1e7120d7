"""Which elements of (N, C, H·W) activations a program works on: tiles of channels × pixels within one image.

Offsets within an image are 32 bits wide, between images 64. A program that sums over pixels takes a run of tiles.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from effnet_kernels.tensors import memory_format

CHANNELS_LAST = tl.constexpr(0)
CHANNELS_LAST_BY_8 = tl.constexpr(1)
"""channels_last with 24 or 40 channels: whole vectors, which Triton sees of a size only where 16 divides it."""

NCHW = tl.constexpr(2)
NCHW_UNALIGNED = tl.constexpr(3)
"""NCHW whose rows of H·W elements are not whole vectors: 14², 7²."""

VECTOR = tl.constexpr(8)
"""Elements of the widest access: 16 bytes of half precision."""

PROGRAMS = 1024
"""How many programs a pass is cut into where the shape allows it: about eight for each multiprocessor of a large GPU.

Not taken from the GPU, so that results have the same bits on every one.
"""


@triton.jit
def units_of_part(part, parts_per_group, units_per_part, units_per_group):
    """The first unit of ``part``, and the end: parts do not cross the groups of units that are summed separately."""
    group = part // parts_per_group
    first = group * units_per_group + (part % parts_per_group) * units_per_part
    return first, tl.minimum(first + units_per_part, (group + 1) * units_per_group)


@triton.jit
def pixel_width(channels, LAYOUT: tl.constexpr):
    """``channels``, so written in CHANNELS_LAST_BY_8 that 8 is seen to divide it."""
    if LAYOUT == CHANNELS_LAST_BY_8:
        channels = channels // VECTOR * VECTOR
    return channels


@triton.jit
def row_tile(channel, pixel, channels, pixels, elements, LAYOUT: tl.constexpr):
    """Offsets in the image, which of them may be read, and which belong to the tile; for programs that only read.

    ``channel`` is (BLOCK_C, 1), ``pixel`` (1, BLOCK_P). In NCHW_UNALIGNED each row is read from the vector boundary
    before it: what else that brings belongs to the neighbouring rows, and is not of the tile.
    """
    if LAYOUT == NCHW:
        offsets = channel * pixels + pixel
        inside = (channel < channels) & (pixel < pixels)
        readable = inside
    elif LAYOUT == NCHW_UNALIGNED:
        begin = channel * pixels
        offsets = begin // VECTOR * VECTOR + pixel
        inside = (channel < channels) & (offsets >= begin) & (offsets < begin + pixels)
        readable = offsets < elements
    else:
        width = pixel_width(channels, LAYOUT)
        offsets = pixel * width + channel
        inside = (channel < width) & (pixel < pixels)
        readable = inside
    return offsets, readable, inside


@triton.jit
def element_tile(tile, channels, pixels, elements, LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Offsets in the image, their channels and which are inside it; for programs that write element by element.

    In NCHW_UNALIGNED an image is one run of elements, whose accesses are aligned where no row's would be.
    """
    lane_c = tl.arange(0, BLOCK_C)[:, None]
    lane_p = tl.arange(0, BLOCK_P)[None, :]
    if LAYOUT == NCHW_UNALIGNED:
        tl.static_assert(BLOCK_C == 1)
        offsets = tile * BLOCK_P + lane_p + lane_c
        channel = offsets // pixels
        inside = offsets < elements
    else:
        blocks = tl.cdiv(channels, BLOCK_C)
        channel = tile % blocks * BLOCK_C + lane_c
        pixel = tile // blocks * BLOCK_P + lane_p
        if LAYOUT == NCHW:
            offsets = channel * pixels + pixel
            inside = (channel < channels) & (pixel < pixels)
        else:
            width = pixel_width(channels, LAYOUT)
            offsets = pixel * width + channel
            inside = (channel < width) & (pixel < pixels)
    return offsets, channel, inside


@triton.jit
def merge_tile(count, mean, m2, v, inside):
    """(count, mean, M2) per channel with the tile ``v`` merged in; Chan, Golub and LeVeque 1979.

    The tile's mean is corrected by what its first sum left over, without which the variance suffers at a large mean.
    """
    tile_count = tl.sum(inside.to(tl.float32), 1)
    at_least_one = tl.maximum(tile_count, 1.0)
    first_mean = tl.sum(tl.where(inside, v, 0.0), 1) / at_least_one
    deviation = tl.where(inside, v - first_mean[:, None], 0.0)
    left_over = tl.sum(deviation, 1)
    tile_mean = first_mean + left_over / at_least_one
    tile_m2 = tl.sum(deviation * deviation, 1) - left_over * left_over / at_least_one
    total = count + tile_count
    share = tile_count / tl.maximum(total, 1.0)
    delta = tile_mean - mean
    return total, mean + delta * share, m2 + tile_m2 + delta * delta * count * share


@dataclass(frozen=True)
class Stream:
    """How one pass over activations is cut up: the block shape by layout and size, and what follows from it."""

    images: int
    channels: int
    pixels: int
    layout: int
    block_c: int
    block_p: int
    flat: bool

    @classmethod
    def reading(cls, x: Tensor) -> "Stream":
        """For programs that only read ``x`` and sum over pixels."""
        return cls._of(x, flat=False)

    @classmethod
    def writing(cls, x: Tensor) -> "Stream":
        """For programs that write a tensor like ``x`` element by element."""
        return cls._of(x, flat=True)

    @classmethod
    def _of(cls, x: Tensor, *, flat: bool) -> "Stream":
        images, channels, height, width = x.shape
        pixels = height * width
        if memory_format(x) == torch.channels_last:
            # 16 bytes for each of 256 threads, whatever the number of channels.
            block_p = min(max(64, 2048 // triton.next_power_of_2(channels)), triton.next_power_of_2(pixels))
            block_c = min(2048 // block_p, triton.next_power_of_2(channels))
            by_8 = channels % 8 == 0 and channels % 16 != 0
            layout = CHANNELS_LAST_BY_8 if by_8 else CHANNELS_LAST
            return cls(images, channels, pixels, layout.value, block_c, block_p, False)
        # Triton tells the alignment of a size from its divisibility by 16.
        if pixels % 16 == 0:
            block_p = min(1024, triton.next_power_of_2(pixels))
            block_c = min(2048 // block_p, triton.next_power_of_2(channels))
            return cls(images, channels, pixels, NCHW.value, block_c, block_p, False)
        if flat:
            block_p = min(2048, triton.next_power_of_2(channels * pixels))
            return cls(images, channels, pixels, NCHW_UNALIGNED.value, 1, block_p, True)
        block_p = min(1024, triton.next_power_of_2(pixels + VECTOR.value - 1))
        block_c = min(2048 // block_p, triton.next_power_of_2(channels))
        return cls(images, channels, pixels, NCHW_UNALIGNED.value, block_c, block_p, False)

    @property
    def elements(self) -> int:
        """Of one image."""
        return self.channels * self.pixels

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Channels, pixels and elements of one image, as the kernels take them."""
        return self.channels, self.pixels, self.elements

    @property
    def channel_blocks(self) -> int:
        return triton.cdiv(self.channels, self.block_c)

    @property
    def row_tiles(self) -> int:
        """Tiles along the pixels of one block of channels of one image."""
        before = VECTOR.value - 1 if self.layout == NCHW_UNALIGNED.value else 0
        return triton.cdiv(self.pixels + before, self.block_p)

    @property
    def element_tiles(self) -> int:
        """Tiles of one image."""
        if self.flat:
            return triton.cdiv(self.elements, self.block_p)
        return self.channel_blocks * triton.cdiv(self.pixels, self.block_p)

    @property
    def blocks(self) -> dict[str, int]:
        """The block shape as the kernels' arguments."""
        return {"LAYOUT": self.layout, "BLOCK_C": self.block_c, "BLOCK_P": self.block_p}


@dataclass(frozen=True)
class Parts:
    """Units of work, in groups that are summed separately, shared out among programs.

    Attributes:
        groups: how many sums there are per channel: the images, or 1.
        units: tiles of one group.
        per_group: programs that share a group.
        units_per_part: what each of them takes.
    """

    groups: int
    units: int
    per_group: int
    units_per_part: int

    @classmethod
    def of(cls, groups: int, units: int, channel_blocks: int) -> "Parts":
        """Enough parts for PROGRAMS programs over all groups and blocks of channels."""
        wanted = triton.cdiv(PROGRAMS, max(groups * channel_blocks, 1))
        units_per_part = triton.cdiv(units, max(min(wanted, units), 1))
        return cls(groups, units, triton.cdiv(units, max(units_per_part, 1)), units_per_part)

    @property
    def count(self) -> int:
        return self.groups * self.per_group

    @property
    def arguments(self) -> tuple[int, int, int]:
        """As ``units_of_part`` takes them."""
        return self.per_group, self.units_per_part, self.units
