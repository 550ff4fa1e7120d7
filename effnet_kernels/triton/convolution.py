"""The shape of a depthwise convolution, and the tiles that its kernels are cut into."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from effnet_kernels.arguments import output_size
from effnet_kernels.tensors import memory_format
from effnet_kernels.triton.tile import Parts


@dataclass(frozen=True)
class Convolution:
    """The shape of a depthwise convolution, and how its tiles are shared out.

    Attributes:
        images, channels, height, width: of its input.
        out_height, out_width: of its output.
    """

    images: int
    channels: int
    height: int
    width: int
    out_height: int
    out_width: int
    kernel: int
    stride: int
    top: int
    left: int
    channels_last: bool

    @classmethod
    def of(cls, x: Tensor, w: Tensor, stride: int, padding: Sequence[int]) -> "Convolution":
        kernel = w.shape[2]
        top, bottom, left, right = padding
        images, channels, height, width = x.shape
        out_height = output_size(height, kernel, stride, top + bottom)
        out_width = output_size(width, kernel, stride, left + right)
        channels_last = memory_format(x) == torch.channels_last
        return cls(images, channels, height, width, out_height, out_width, kernel, stride, top, left, channels_last)

    def empty_output(self, x: Tensor) -> Tensor:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        shape = (self.images, self.channels, self.out_height, self.out_width)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)

    @property
    def sizes(self) -> tuple[int, ...]:
        """As both kernels take them."""
        return (self.channels, self.height, self.width, self.out_height, self.out_width, self.top, self.left)

    def tiles(self, height: int, width: int) -> "Tiles":
        """Of maps of ``height`` × ``width``: squares, or in NCHW rows as long as a line of the cache."""
        block_c, block_h, block_w = 32, 8, 8
        if height <= 4 and width <= 4:
            block_c, block_h, block_w = 128, 4, 4
        if not self.channels_last:
            # Addresses of single elements take twice their registers.
            block_c, block_h, block_w = (4, 8, 32) if width >= 24 else (block_c // 4, block_h, 2 * block_w)
        return Tiles(min(block_c, triton.next_power_of_2(self.channels)), block_h, block_w, height, width, self)


@dataclass(frozen=True)
class Tiles:
    """Blocks of channels × rows × columns over every map of a convolution's input or output."""

    block_c: int
    block_h: int
    block_w: int
    height: int
    width: int
    convolution: Convolution

    @property
    def columns(self) -> int:
        return triton.cdiv(self.width, self.block_w)

    @property
    def per_image(self) -> int:
        return triton.cdiv(self.height, self.block_h) * self.columns

    @property
    def channel_blocks(self) -> int:
        return triton.cdiv(self.convolution.channels, self.block_c)

    def parts(self, *, per_image: bool = False) -> Parts:
        """Sums over each image, or over all of them."""
        images = self.convolution.images
        groups, units = (images, self.per_image) if per_image else (1, images * self.per_image)
        return Parts.of(groups, units, self.channel_blocks)

    @property
    def blocks(self) -> dict[str, int]:
        c = self.convolution
        return {
            "KERNEL": c.kernel,
            "STRIDE": c.stride,
            "CHANNELS_LAST": c.channels_last,
            "BLOCK_C": self.block_c,
            "BLOCK_H": self.block_h,
            "BLOCK_W": self.block_w,
            "maxnreg": 255,
        }
