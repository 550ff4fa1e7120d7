"""torchvision's blocks and layers: EfficientNet V1 and V2, MobileNet V2 and V3, MNASNet."""

from typing import Any

from torch import nn
from torchvision.models import efficientnet, mnasnet, mobilenetv2, mobilenetv3
from torchvision.ops import StochasticDepth
from torchvision.ops.misc import Conv2dNormActivation, SqueezeExcitation

from effnet.fusion.chain import CONTAINERS, in_sequence
from effnet.fusion.modules import Branch, FusedBlock, FusedChain, FusedLeaf, is_known, register
from effnet.fusion.parts import DROPS, EXCITATIONS, Excitation

if is_known(StochasticDepth, "stochastic_depth p mode training"):
    DROPS[StochasticDepth] = lambda drop: bool(drop.training and drop.p)


def _excitation(se: SqueezeExcitation) -> Excitation | str:
    pools = type(se.avgpool) is nn.AdaptiveAvgPool2d and se.avgpool.output_size in (1, (1, 1), [1, 1])
    if not pools:
        return "pools to more than one pixel"
    return Excitation(se.fc1, se.activation, se.fc2, se.scale_activation, se)


EXCITATIONS[SqueezeExcitation] = _excitation
CONTAINERS[Conv2dNormActivation] = in_sequence


class FusedConv2dNormActivation(FusedChain, Conv2dNormActivation):
    """Convolution, BatchNorm, activation."""

    unfused_class = Conv2dNormActivation


class FusedSqueezeExcitation(FusedLeaf, SqueezeExcitation):
    """Squeeze-and-excite."""

    unfused_class = SqueezeExcitation


class FusedMBConv(FusedBlock, efficientnet.MBConv):
    """EfficientNet's MBConv."""

    unfused_class = efficientnet.MBConv

    def fused_branch(self: Any) -> Branch:
        return Branch.of((self.block,), self.use_res_connect, self.stochastic_depth)


class FusedFusedMBConv(FusedBlock, efficientnet.FusedMBConv):
    """EfficientNetV2's Fused-MBConv."""

    unfused_class = efficientnet.FusedMBConv

    def fused_branch(self: Any) -> Branch:
        return Branch.of((self.block,), self.use_res_connect, self.stochastic_depth)


class FusedInvertedResidualV2(FusedBlock, mobilenetv2.InvertedResidual):
    """MobileNetV2's block."""

    unfused_class = mobilenetv2.InvertedResidual

    def fused_branch(self: Any) -> Branch:
        return Branch.of((self.conv,), self.use_res_connect)


class FusedInvertedResidualV3(FusedBlock, mobilenetv3.InvertedResidual):
    """MobileNetV3's block."""

    unfused_class = mobilenetv3.InvertedResidual

    def fused_branch(self: Any) -> Branch:
        return Branch.of((self.block,), self.use_res_connect)


class FusedMNASNetResidual(FusedBlock, mnasnet._InvertedResidual):
    """MNASNet's block."""

    unfused_class = mnasnet._InvertedResidual

    def fused_branch(self: Any) -> Branch:
        return Branch.of((self.layers,), self.apply_residual)


register(FusedConv2dNormActivation, "")
register(FusedSqueezeExcitation, "_scale")
register(FusedMBConv, "block use_res_connect stochastic_depth")
register(FusedFusedMBConv, "block use_res_connect stochastic_depth")
register(FusedInvertedResidualV2, "use_res_connect conv")
register(FusedInvertedResidualV3, "block use_res_connect")
register(FusedMNASNetResidual, "apply_residual layers")
