"""The depthwise convolutions of EfficientNet-B0 at 224×224, and the batch at which each is counted."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from effnet.config import find_variant

BATCH = 128
"""The batch that is computed and planned for."""

_IMAGES = {112: 1, 56: 1, 28: 6, 14: 9, 7: 9}
_BEHIND_STEM = 112


@dataclass(frozen=True)
class Shape:
    """What lies between the two 1×1 convolutions of an MBConv block. Counts of elements are for one image."""

    channels: int
    size: int
    kernel: int
    stride: int
    squeezed: int
    bn1: bool

    @property
    def out_size(self) -> int:
        return self.size // self.stride

    @property
    def ein(self) -> int:
        return self.channels * self.size**2

    @property
    def eout(self) -> int:
        return self.channels * self.out_size**2

    @property
    def images(self) -> int:
        """How many images are counted, on a device of as many multiprocessors.

        Plans look at images per multiprocessor, so work is cut much as it is for 128 images on 128 multiprocessors,
        and counted in a fraction of the time. Several images where a block takes several.
        """
        return _IMAGES[self.size]

    def __str__(self) -> str:
        return f"{self.channels}@{self.size},{self.kernel},{self.stride}{'' if self.bn1 else ' no BN1'}"


def _blocks() -> Iterator[Shape]:
    size = _BEHIND_STEM
    for stage in find_variant("efficientnet_b0").blocks():
        for block in stage:
            bn1 = block.expand_ratio > 1
            yield Shape(block.expanded_channels, size, block.kernel_size, block.stride, block.squeezed_channels, bn1)
            size //= block.stride


B0 = Counter(_blocks())
"""The distinct shapes, in the network's order, and how many blocks have each."""

FIRST = next(iter(B0))
"""The first block does not expand, and so has no BN1."""

COUNTED = (replace(FIRST, bn1=True), *B0)
"""The first shape both ways, and the others."""
