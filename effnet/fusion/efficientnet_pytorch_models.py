"""``efficientnet_pytorch``: EfficientNet with TensorFlow's padding."""

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
    register_convolutions,
    register_swish,
)
from effnet.fusion.modules import register


class FusedBlockOfEfficientNet(FusedMBConvBlock, MBConvBlock):
    """MBConv."""

    unfused_class = MBConvBlock
    library_drop_connect = staticmethod(drop_connect)


register_swish(MemoryEfficientSwish)
register_convolutions(Conv2dStaticSamePadding, Conv2dDynamicSamePadding)
register(FusedBlockOfEfficientNet, FORWARD_OF_ARGUMENTS)
