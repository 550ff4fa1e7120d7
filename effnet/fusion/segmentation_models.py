"""``segmentation_models_pytorch``: the blocks of its own EfficientNet encoders; others are other libraries'."""

from typing import Any

from segmentation_models_pytorch.encoders._efficientnet import (
    Conv2dDynamicSamePadding,
    Conv2dStaticSamePadding,
    MBConvBlock,
    drop_connect,
)

from effnet.fusion.mbconv_block import EXPANSION, LAYERS, FusedMBConvBlock, branch, register_convolutions
from effnet.fusion.modules import Branch, register


class FusedBlockOfEncoder(FusedMBConvBlock, MBConvBlock):
    """MBConv."""

    unfused_class = MBConvBlock

    def fused_branch(self: Any, drop_connect_rate: float | None = None) -> Branch:
        structure = (self._has_expansion, self._has_se, self._has_drop_connect)
        return branch(self, structure, drop_connect, drop_connect_rate)


register_convolutions(Conv2dStaticSamePadding, Conv2dDynamicSamePadding)
register(FusedBlockOfEncoder, f"_has_expansion {EXPANSION} _has_se {LAYERS} _has_drop_connect drop_connect training")
