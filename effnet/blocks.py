"""Building blocks: convolution + BatchNorm + activation, MBConv and Fused-MBConv."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effnet.config import BlockConfig
from effnet.inference import prepared_conv, prepared_mbconv
from effnet.switch import Switchable
from effnet_kernels import pointwise_conv
from effnet_kernels.arguments import Padding, same_padding, symmetric_padding
from effnet_kernels.nn import (
    SqueezeExcite2d,
    batch_norm_act,
    has_hooks,
    mbconv,
    mbconv_core,
    mbconv_core_unscaled,
    uses_batch_statistics,
)
from effnet_kernels.reference.batch_norm_act import act_keep_residual

PaddingRule = Literal["symmetric", "same"]
PADDING_RULES: tuple[PaddingRule, ...] = ("symmetric", "same")


@dataclass(frozen=True)
class LayerSettings:
    """What all layers of a network share."""

    activation: str
    padding: PaddingRule
    bn_eps: float
    bn_momentum: float


class PaddedConv2d(nn.Conv2d):
    """A convolution without bias that pads by a rule: PyTorch's symmetric one, or TensorFlow's SAME."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, groups: int, rule: PaddingRule
    ) -> None:
        half = (kernel_size - 1) // 2
        super().__init__(in_channels, out_channels, kernel_size, stride, half, groups=groups, bias=False)
        self.rule: PaddingRule = rule

    @property
    def is_pointwise(self) -> bool:
        """1×1 of stride 1 over all channels: a matrix product of the pixels."""
        return self.kernel_size == (1, 1) and self.stride == (1, 1) and self.groups == 1

    def padding_for(self, height: int, width: int) -> Padding:
        """(top, bottom, left, right); under SAME it depends on the input's size where the stride is 2."""
        kernel_size, stride = self.kernel_size[0], self.stride[0]
        if self.rule == "symmetric" or stride == 1:
            return symmetric_padding(kernel_size)
        return same_padding(height, width, kernel_size, stride)

    def explicit_padding(self, x: Tensor) -> Padding:
        """``padding_for`` the size of ``x``."""
        return self.padding_for(x.shape[2], x.shape[3])

    def forward(self, x: Tensor) -> Tensor:
        top, bottom, left, right = self.explicit_padding(x)
        if top != bottom or left != right:
            x = F.pad(x, (left, right, top, bottom))
            top = left = 0
        return F.conv2d(x, self.weight, None, self.stride, (top, left), self.dilation, self.groups)


class ConvBNAct(Switchable):
    """act(BN(conv(x))) · keep[n] (+ residual): ``conv`` and ``bn``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        settings: LayerSettings,
        *,
        stride: int = 1,
        depthwise: bool = False,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        groups = in_channels if depthwise else 1
        self.conv = PaddedConv2d(in_channels, out_channels, kernel_size, stride, groups, settings.padding)
        self.bn = nn.BatchNorm2d(out_channels, eps=settings.bn_eps, momentum=settings.bn_momentum)
        self.activation = settings.activation if activation is None else activation

    def forward(self, x: Tensor, keep: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        prepared = prepared_conv(self, x) if keep is None else None
        if prepared is not None:
            return prepared(x, self.conv.explicit_padding(x), residual)
        pointwise = self.runs_fused and self.conv.is_pointwise and not has_hooks(self.conv)
        y = pointwise_conv(x, self.conv.weight) if pointwise else self.conv(x)
        if has_hooks(self.bn):
            return act_keep_residual(self.bn(y), self.activation, keep, residual)
        return batch_norm_act(y, self.bn, self.activation, keep, residual, fused=self.runs_fused)


class ResidualBlock(Switchable):
    """What MBConv and Fused-MBConv share: the skip, and the drop-connect that goes with it."""

    def __init__(self, config: BlockConfig, drop_connect: float) -> None:
        super().__init__()
        self.has_skip = config.has_skip
        self.drop_connect = drop_connect

    def keep(self, x: Tensor) -> Tensor | None:
        """Drop-connect's factor per sample, 0 or 1/survival; None where nothing is dropped.

        Source: Huang et al. 2016 (arXiv 1603.09382), section 3; drawn as torchvision's ``stochastic_depth`` draws.
        """
        if not (self.training and self.has_skip and self.drop_connect > 0):
            return None
        survival = 1 - self.drop_connect
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        draws = torch.empty(x.shape[0], dtype=dtype, device=x.device).bernoulli_(survival)
        return draws.div_(survival) if survival > 0 else draws

    def residual(self, x: Tensor) -> Tensor | None:
        """The block's input, to be added last; None where there is no skip."""
        return x if self.has_skip else None


class MBConv(ResidualBlock):
    """Inverted bottleneck: ``expand`` 1×1, ``depthwise`` k×k, ``squeeze_excite``, ``project`` 1×1.

    Computes, for x of (N, C, H, W)::

        out = keep[n] · BN3(project(SE(act(BN2(depthwise(act(BN1(expand(x))))))))) + x

    without ``expand`` at expand ratio 1, without SE where the variant has none, and with the skip only where shapes
    agree. All between the two 1×1 convolutions is one operator, ``effnet_kernels.mbconv_core``.

    Source: Tan and Le 2019 (arXiv 1905.11946), section 4; Sandler et al. 2018 (arXiv 1801.04381), section 3.
    """

    expand: ConvBNAct | None
    squeeze_excite: SqueezeExcite2d | None

    def __init__(self, config: BlockConfig, settings: LayerSettings, drop_connect: float) -> None:
        super().__init__(config, drop_connect)
        channels = config.expanded_channels
        self.expand = ConvBNAct(config.in_channels, channels, 1, settings) if config.expand_ratio != 1 else None
        self.depthwise = ConvBNAct(
            channels, channels, config.kernel_size, settings, stride=config.stride, depthwise=True
        )
        squeezed = config.squeezed_channels
        activation = settings.activation
        self.squeeze_excite = SqueezeExcite2d(channels, squeezed, activation=activation) if squeezed else None
        self.project = ConvBNAct(channels, config.out_channels, 1, settings, activation="identity")

    def forward(self, x: Tensor) -> Tensor:
        expand, depthwise, se, project = self.expand, self.depthwise, self.squeeze_excite, self.project
        conv, bn2 = depthwise.conv, depthwise.bn
        padding = conv.explicit_padding(x)
        prepared = prepared_mbconv(self, x)
        if prepared is not None:
            return prepared(x, padding)
        expansion, bn1 = (None, None) if expand is None else (expand.conv, expand.bn)
        projection, bn3 = project.conv, project.bn
        # Where a module has hooks of which an operator would take the tensors without calling it.
        excitation = (None,) if se is None else (se, se.reduce, se.expand)
        if has_hooks(*excitation, depthwise, conv, bn2, bn3) or (bn1 is not None and has_hooks(expand, bn1)):
            return self._forward_of_modules(x)
        if self._folds_scale(x):
            return self._project_scaled(x if expansion is None else expansion(x), padding, self.residual(x))
        if self.runs_fused and not has_hooks(project, projection, expansion):
            projected = mbconv(
                x,
                conv,
                bn2,
                projection,
                expand=expansion,
                bn1=bn1,
                se=se,
                padding=padding,
                activation=depthwise.activation,
            )
            return batch_norm_act(projected, bn3, project.activation, self.keep(x), self.residual(x), fused=True)
        core = mbconv_core(
            x if expansion is None else expansion(x),
            conv,
            bn2,
            bn1=bn1,
            se=se,
            padding=padding,
            activation=depthwise.activation,
            fused=self.runs_fused,
        )
        return project(core, self.keep(x), self.residual(x))

    def _forward_of_modules(self, x: Tensor) -> Tensor:
        """The formula by a call of every module, so that hooks run."""
        expanded = x if self.expand is None else self.expand(x)
        z = self.depthwise(expanded)
        if self.squeeze_excite is not None:
            z = self.squeeze_excite(z)
        return self.project(z, self.keep(x), self.residual(x))

    def _folds_scale(self, x: Tensor) -> bool:
        """Whether SE's scale is cheaper applied to ``project``'s weights: for one image that is larger than they are.

        Not where shapes are symbols, which a comparison with 1 would pin down.
        """
        if torch.compiler.is_compiling() or not self.runs_fused or torch.is_grad_enabled():
            return False
        if has_hooks(self.project, self.project.conv):
            return False
        norms = [self.depthwise.bn] if self.expand is None else [self.expand.bn, self.depthwise.bn]
        if self.squeeze_excite is None or any(uses_batch_statistics(bn) for bn in norms):
            return False
        pixels = x.shape[2] * x.shape[3] // self.depthwise.conv.stride[0] ** 2
        return x.shape[0] == 1 and self.project.conv.out_channels <= pixels

    def _project_scaled(self, u: Tensor, padding: Padding, residual: Tensor | None) -> Tensor:
        assert self.squeeze_excite is not None
        z, scale = mbconv_core_unscaled(
            u,
            self.depthwise.conv,
            self.depthwise.bn,
            self.squeeze_excite,
            bn1=None if self.expand is None else self.expand.bn,
            padding=padding,
            activation=self.depthwise.activation,
        )
        weight = self.project.conv.weight
        projected = F.conv2d(z, weight * scale.to(weight.dtype)[0, :, None, None])
        return batch_norm_act(projected, self.project.bn, self.project.activation, None, residual, fused=True)


class FusedMBConv(ResidualBlock):
    """EfficientNetV2's early block: a full k×k ``expand`` in place of 1×1 and depthwise, then ``project`` 1×1.

    Computes out = keep[n] · BN2(project(act(BN1(expand(x))))) + x; at expand ratio 1 there is only ``project``, which
    is then k×k and followed by the activation. No squeeze-and-excite.

    Source: Tan and Le 2021 (arXiv 2104.00298), section 3.2; torchvision and timm agree on the case of ratio 1.
    """

    expand: ConvBNAct | None

    def __init__(self, config: BlockConfig, settings: LayerSettings, drop_connect: float) -> None:
        super().__init__(config, drop_connect)
        k, stride, channels = config.kernel_size, config.stride, config.expanded_channels
        if config.expand_ratio == 1:
            self.expand = None
            self.project = ConvBNAct(channels, config.out_channels, k, settings, stride=stride)
        else:
            self.expand = ConvBNAct(config.in_channels, channels, k, settings, stride=stride)
            self.project = ConvBNAct(channels, config.out_channels, 1, settings, activation="identity")

    def forward(self, x: Tensor) -> Tensor:
        expanded = x if self.expand is None else self.expand(x)
        return self.project(expanded, self.keep(x), self.residual(x))


def build_block(config: BlockConfig, settings: LayerSettings, drop_connect: float) -> MBConv | FusedMBConv:
    """The block that ``config`` describes."""
    kind = MBConv if config.kind == "mbconv" else FusedMBConv
    return kind(config, settings, drop_connect)
