"""``efficientnet_pytorch``: EfficientNet with TensorFlow's padding."""

from typing import Any

from efficientnet_pytorch.model import MBConvBlock
from efficientnet_pytorch.utils import (
    Conv2dDynamicSamePadding,
    Conv2dStaticSamePadding,
    MemoryEfficientSwish,
    drop_connect,
)

from effnet.fusion.mbconv_block import (
    FORWARD_OF_ARGUMENTS,
    FusedMBConvBlock,
    branch,
    register_convolutions,
    register_swish,
    structure_of_arguments,
)
from effnet.fusion.modules import Branch, register


class FusedBlockOfEfficientNet(FusedMBConvBlock, MBConvBlock):
    """MBConv."""

    unfused_class = MBConvBlock

    def fused_branch(self: Any, drop_connect_rate: float | None = None) -> Branch:
        return branch(self, structure_of_arguments(self), drop_connect, drop_connect_rate)


register_swish(MemoryEfficientSwish)
register_convolutions(Conv2dStaticSamePadding, Conv2dDynamicSamePadding)
register(FusedBlockOfEfficientNet, FORWARD_OF_ARGUMENTS)
