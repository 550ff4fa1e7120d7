"""timm's blocks and layers: EfficientNet, MobileNet V2 to V4, MNASNet, FBNet, ReXNet and their relatives."""

from typing import Any

from timm.layers import BatchNormAct2d, ConvNormAct, DropPath, SEModule
from timm.layers.activations import Sigmoid, Swish
from timm.layers.conv2d_same import Conv2dSame
from timm.models._efficientnet_blocks import (
    ConvBnAct,
    DepthwiseSeparableConv,
    EdgeResidual,
    InvertedResidual,
    SqueezeExcite,
    UniversalInvertedResidual,
)
from torch import nn

from effnet.fusion.chain import CONTAINERS
from effnet.fusion.modules import Branch, FusedBlock, FusedChain, FusedLeaf, is_known, register
from effnet.fusion.parts import ACTIVATIONS, DROPS, EXCITATIONS, GATES, NORMS, PADDINGS, SAME, Excitation

if is_known(Swish, "swish inplace"):
    ACTIVATIONS[Swish] = "silu"
if is_known(Sigmoid, "inplace sigmoid_ sigmoid"):
    GATES[Sigmoid] = "sigmoid"
if is_known(Conv2dSame, "conv2d_same weight bias stride padding dilation groups"):
    PADDINGS[Conv2dSame] = lambda conv: SAME
if is_known(DropPath, "drop_path drop_prob training scale_by_keep"):
    DROPS[DropPath] = lambda drop: bool(drop.training and drop.drop_prob)


def _activation(bn: BatchNormAct2d) -> nn.Module | str:
    return bn.act if type(bn.drop) is nn.Identity else f"{type(bn.drop).__name__} before the activation"


def _excitation(se: SqueezeExcite) -> Excitation:
    return Excitation(se.conv_reduce, se.act1, se.conv_expand, se.gate, se)


def _se_module(se: SEModule) -> Excitation | str:
    if se.add_maxpool:
        return "pools the maximum too"
    if type(se.bn) is not nn.Identity:
        return f"{type(se.bn).__name__} between its layers"
    return Excitation(se.fc1, se.act, se.fc2, se.gate, se)


NORMS[BatchNormAct2d] = _activation
EXCITATIONS[SqueezeExcite] = _excitation
EXCITATIONS[SEModule] = _se_module
CONTAINERS[ConvNormAct] = lambda layer: (layer.conv, layer.bn, getattr(layer, "aa", None))


class FusedBatchNormAct2d(FusedLeaf, BatchNormAct2d):
    """BatchNorm with its activation."""

    unfused_class = BatchNormAct2d


class FusedSqueezeExcite(FusedLeaf, SqueezeExcite):
    """EfficientNet's and MobileNet's squeeze-and-excite."""

    unfused_class = SqueezeExcite


class FusedSEModule(FusedLeaf, SEModule):
    """The other networks' squeeze-and-excite."""

    unfused_class = SEModule


class FusedConvNormAct(FusedChain, ConvNormAct):
    """Convolution, BatchNorm, activation."""

    unfused_class = ConvNormAct


class FusedConvBnAct(FusedBlock, ConvBnAct):
    """The same as a block with a shortcut."""

    unfused_class = ConvBnAct

    def fused_branch(self: Any) -> Branch:
        return Branch.of((self.conv, self.bn1, self.aa), self.has_skip, self.drop_path)


class FusedDepthwiseSeparableConv(FusedBlock, DepthwiseSeparableConv):
    """MBConv without expansion."""

    unfused_class = DepthwiseSeparableConv

    def fused_branch(self: Any) -> Branch:
        before = (self.conv_s2d, self.bn_s2d)
        layers = (*before, self.conv_dw, self.bn1, self.aa, self.se, self.conv_pw, self.bn2)
        return Branch.of(layers, self.has_skip, self.drop_path)


class FusedInvertedResidual(FusedBlock, InvertedResidual):
    """MBConv."""

    unfused_class = InvertedResidual

    def fused_branch(self: Any) -> Branch:
        before = (self.conv_s2d, self.bn_s2d, self.conv_pw, self.bn1)
        layers = (*before, self.conv_dw, self.bn2, self.aa, self.se, self.conv_pwl, self.bn3)
        return Branch.of(layers, self.has_skip, self.drop_path)


class FusedEdgeResidual(FusedBlock, EdgeResidual):
    """Fused-MBConv, as EfficientNetV2 has it."""

    unfused_class = EdgeResidual

    def fused_branch(self: Any) -> Branch:
        layers = (self.conv_exp, self.bn1, self.aa, self.se, self.conv_pwl, self.bn2)
        return Branch.of(layers, self.has_skip, self.drop_path)


class FusedUniversalInvertedResidual(FusedBlock, UniversalInvertedResidual):
    """MobileNetV4's block."""

    unfused_class = UniversalInvertedResidual

    def fused_branch(self: Any) -> Branch:
        middle = (self.dw_start, self.pw_exp, self.dw_mid, self.se, self.pw_proj)
        return Branch.of((*middle, self.dw_end, self.layer_scale), self.has_skip, self.drop_path)


_BATCH_NORM = "momentum training track_running_stats num_batches_tracked add_ float running_mean running_var"
_S2D = "conv_s2d bn_s2d"
_SKIP = "has_skip drop_path"

register(FusedBatchNormAct2d, f"_assert ndim {_BATCH_NORM} F batch_norm weight bias eps drop act")
register(FusedSqueezeExcite, "mean conv_reduce act1 conv_expand gate")
register(FusedSEModule, "mean add_maxpool amax fc1 act bn fc2 gate")
register(FusedConvNormAct, "conv bn getattr aa")
register(FusedConvBnAct, f"conv bn1 aa {_SKIP}")
register(FusedDepthwiseSeparableConv, f"{_S2D} conv_dw bn1 aa se conv_pw bn2 {_SKIP}")
register(FusedInvertedResidual, f"{_S2D} conv_pw bn1 conv_dw bn2 aa se conv_pwl bn3 {_SKIP}")
register(FusedEdgeResidual, f"conv_exp bn1 aa se conv_pwl bn2 {_SKIP}")
register(FusedUniversalInvertedResidual, f"dw_start pw_exp dw_mid se pw_proj dw_end layer_scale {_SKIP}")
