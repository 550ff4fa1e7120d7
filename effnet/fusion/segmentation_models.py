"""``segmentation_models_pytorch``: the blocks of its own EfficientNet encoders; others are other libraries'."""

from typing import Any

from segmentation_models_pytorch.encoders._efficientnet import (
    Conv2dDynamicSamePadding,
    Conv2dStaticSamePadding,
    MBConvBlock,
    drop_connect,
)

from effnet.fusion.mbconv_block import EXPANSION, LAYERS, FusedMBConvBlock, register_convolutions
from effnet.fusion.modules import register


class FusedBlockOfEncoder(FusedMBConvBlock, MBConvBlock):
    """MBConv."""

    unfused_class = MBConvBlock
    library_drop_connect = staticmethod(drop_connect)

    def structure(self: Any) -> tuple[bool, bool, bool]:
        return self._has_expansion, self._has_se, self._has_drop_connect


register_convolutions(Conv2dStaticSamePadding, Conv2dDynamicSamePadding)
register(FusedBlockOfEncoder, f"_has_expansion {EXPANSION} _has_se {LAYERS} _has_drop_connect drop_connect training")
