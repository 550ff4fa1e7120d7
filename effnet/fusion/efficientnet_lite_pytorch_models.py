"""``efficientnet_lite_pytorch``: EfficientNet-Lite with TensorFlow's padding."""

from efficientnet_lite_pytorch.model import MBConvBlock
from efficientnet_lite_pytorch.utils import (
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


class FusedBlockOfLite(FusedMBConvBlock, MBConvBlock):
    """MBConv."""

    unfused_class = MBConvBlock
    library_drop_connect = staticmethod(drop_connect)


register_swish(MemoryEfficientSwish)
register_convolutions(Conv2dStaticSamePadding, Conv2dDynamicSamePadding)
register(FusedBlockOfLite, FORWARD_OF_ARGUMENTS)
