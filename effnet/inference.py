"""The blocks' layers as one operator each, and a network as the list of them, in inference on CPU.

``effnet.prepared`` says when.

Only layers as this package builds them: with another class in a submodule's place they run as their modules say.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import effnet.blocks
import effnet.model
from effnet.prepared import prepared
from effnet.switch import Switchable
from effnet_kernels.arguments import KERNEL_SIZES, STRIDES, BatchNorm
from effnet_kernels.nn import SqueezeExcite2d, SyncBatchNorm2d, batch_norm_arguments
from effnet_kernels.ops.prepared import PreparedConv, PreparedMBConv

_NORMS = (nn.BatchNorm2d, SyncBatchNorm2d, nn.SyncBatchNorm)


def prepared_conv(layer: "effnet.blocks.ConvBNAct", x: Tensor) -> PreparedConv | None:
    """``layer`` as one operator, where it and ``x`` allow that."""

    def prepare(dtype: torch.dtype) -> PreparedConv | None:
        parts = _conv_and_norm(layer)
        if parts is None or layer.conv.groups != 1:
            return None
        return PreparedConv.make(*parts, stride=layer.conv.stride[0], activation=layer.activation, dtype=dtype)

    return prepared(layer, x, prepare) if layer.runs_fused else None


def prepared_linear(layer: nn.Linear, x: Tensor, *, fused: bool) -> PreparedConv | None:
    """``layer`` for single pixels ``x`` of (N, C, 1, 1), where it and ``x`` allow that.

    A classifier's weights are read once per call, from memory; prepared, they are read in half the time.
    """

    def prepare(dtype: torch.dtype) -> PreparedConv | None:
        plain = type(layer) is nn.Linear and layer.bias is not None
        return PreparedConv.linear(layer.weight, layer.bias, dtype) if plain else None

    return prepared(layer, x, prepare) if fused else None


def prepared_mbconv(layer: "effnet.blocks.MBConv", x: Tensor) -> PreparedMBConv | None:
    """``layer`` as one operator, where it and ``x`` allow that."""

    def prepare(dtype: torch.dtype) -> PreparedMBConv | None:
        expand, depthwise, se, project = layer.expand, layer.depthwise, layer.squeeze_excite, layer.project
        parts = [None if conv is None else _conv_and_norm(conv) for conv in (expand, depthwise, project)]
        if (expand is not None and parts[0] is None) or parts[1] is None or parts[2] is None:
            return None
        conv = depthwise.conv
        plain = conv.kernel_size[0] in KERNEL_SIZES and conv.stride[0] in STRIDES and conv.groups == conv.in_channels
        if not plain or project.activation != "identity" or (se is not None and not _is_plain_excitation(se)):
            return None
        return PreparedMBConv.make(
            parts[0],
            parts[1],
            None if se is None else se.arguments(),
            parts[2],
            stride=conv.stride[0],
            activation=depthwise.activation,
            gate="sigmoid" if se is None else se.gate,
            residual=layer.has_skip,
            dtype=dtype,
        )

    return prepared(layer, x, prepare) if layer.runs_fused else None


@dataclass(frozen=True)
class Step:
    """One layer of a network, with the convolution whose padding it takes."""

    layer: PreparedConv | PreparedMBConv
    conv: "effnet.blocks.PaddedConv2d"

    def __call__(self, x: Tensor) -> Tensor:
        return self.layer(x, self.conv.explicit_padding(x))


@dataclass(frozen=True)
class FusedMBConvStep:
    """A Fused-MBConv block: one step or two, and the block's input added in the last."""

    expand: Step | None
    project: Step
    has_skip: bool

    def __call__(self, x: Tensor) -> Tensor:
        expanded = x if self.expand is None else self.expand(x)
        conv, layer = self.project.conv, self.project.layer
        assert isinstance(layer, PreparedConv)
        return layer(expanded, conv.explicit_padding(expanded), x if self.has_skip else None)


@dataclass(frozen=True)
class PreparedNetwork:
    """A network's layers, called one after the other without a look at the layers they were made from."""

    steps: tuple[Step | FusedMBConvStep, ...]
    classifier: PreparedConv

    def __call__(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return self.classifier(F.adaptive_avg_pool2d(x, 1), (0, 0, 0, 0)).flatten(1)


def prepared_network(network: "effnet.model.EfficientNet", x: Tensor) -> PreparedNetwork | None:
    """``network`` as a list of operators, where all of it and ``x`` allow that.

    At one picture a tenth of the time would go into looking at the layers one by one.
    """

    def prepare(_: torch.dtype) -> PreparedNetwork | None:
        if type(network) is not effnet.model.EfficientNet or not _is_nested(network.stages):
            return None
        if any(m.fused != network.fused for m in network.modules() if isinstance(m, Switchable)):
            return None
        blocks = [block for stage in network.stages for block in stage]  # type: ignore[attr-defined]
        steps = [_prepared_step(layer, x) for layer in (network.stem, *blocks, network.head)]
        classifier = prepared_linear(network.classifier, x, fused=True)
        known = tuple(step for step in steps if step is not None)
        return None if classifier is None or len(known) < len(steps) else PreparedNetwork(known, classifier)

    return prepared(network, x, prepare) if network.runs_fused else None


def _is_nested(stages: nn.Module) -> bool:
    sequences: Iterable[nn.Module] = (stages, *stages.children())
    return all(type(sequence) is nn.Sequential for sequence in sequences)


def _prepared_step(layer: nn.Module, x: Tensor) -> Step | FusedMBConvStep | None:
    if type(layer) is effnet.blocks.ConvBNAct:
        conv = prepared_conv(layer, x)
        return None if conv is None else Step(conv, layer.conv)
    if type(layer) is effnet.blocks.MBConv:
        mbconv = prepared_mbconv(layer, x)
        return None if mbconv is None else Step(mbconv, layer.depthwise.conv)
    if type(layer) is effnet.blocks.FusedMBConv:
        expand = None if layer.expand is None else _prepared_step(layer.expand, x)
        project = _prepared_step(layer.project, x)
        if isinstance(project, Step) and (layer.expand is None or isinstance(expand, Step)):
            return FusedMBConvStep(expand if isinstance(expand, Step) else None, project, layer.has_skip)
    return None


def _conv_and_norm(layer: "effnet.blocks.ConvBNAct") -> tuple[Tensor, BatchNorm] | None:
    """The tensors of a convolution and its BatchNorm as this package builds them, with constant statistics."""
    conv, bn = layer.conv, layer.bn
    if type(layer) is not effnet.blocks.ConvBNAct or type(conv) is not effnet.blocks.PaddedConv2d:
        return None
    square = conv.kernel_size[0] == conv.kernel_size[1] and conv.stride[0] == conv.stride[1]
    if not square or conv.dilation != (1, 1) or conv.bias is not None or type(bn) not in _NORMS:
        return None
    if bn.training or bn.running_mean is None:
        return None
    return conv.weight, batch_norm_arguments(bn)


def _is_plain_excitation(se: SqueezeExcite2d) -> bool:
    layers = (se.reduce, se.expand)
    return type(se) is SqueezeExcite2d and all(type(m) is nn.Conv2d and m.bias is not None for m in layers)
