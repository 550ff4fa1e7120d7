"""The blocks' layers as one operator each, and a whole network as one, in inference on CPU.

``effnet.prepared`` says when.

Only layers as this package builds them: with another class in a submodule's place they run as their modules say.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

import effnet.blocks
import effnet.model
from effnet.prepared import prepared
from effnet.switch import Switchable
from effnet_kernels.arguments import KERNEL_SIZES, STRIDES, BatchNorm
from effnet_kernels.nn import SqueezeExcite2d, SyncBatchNorm2d, batch_norm_arguments
from effnet_kernels.ops.prepared import PreparedConv, PreparedMBConv
from effnet_kernels.ops.prepared_network import NetworkLayer, PreparedNetwork

_NORMS = (nn.BatchNorm2d, SyncBatchNorm2d, nn.SyncBatchNorm)


def prepared_conv(layer: "effnet.blocks.ConvBNAct", x: Tensor) -> PreparedConv | None:
    """``layer`` as one operator, where it and ``x`` allow that."""
    return prepared(layer, x, partial(_conv, layer)) if layer.runs_fused else None


def prepared_linear(layer: nn.Linear, x: Tensor, *, fused: bool) -> PreparedConv | None:
    """``layer`` for single pixels ``x`` of (N, C, 1, 1), where it and ``x`` allow that.

    A classifier's weights are read once per call, from memory; prepared, they are read in half the time.
    """
    return prepared(layer, x, partial(_linear, layer)) if fused else None


def prepared_mbconv(layer: "effnet.blocks.MBConv", x: Tensor) -> PreparedMBConv | None:
    """``layer`` as one operator, where it and ``x`` allow that."""
    return prepared(layer, x, partial(_mbconv, layer)) if layer.runs_fused else None


def prepared_network(network: "effnet.model.EfficientNet", x: Tensor) -> PreparedNetwork | None:
    """``network`` as one operator, where all of it and ``x`` allow that."""
    return prepared(network, x, partial(_network, network)) if network.runs_fused else None


def _conv(layer: "effnet.blocks.ConvBNAct", dtype: torch.dtype) -> PreparedConv | None:
    parts = _conv_and_norm(layer)
    if parts is None or layer.conv.groups != 1:
        return None
    return PreparedConv.make(*parts, stride=layer.conv.stride[0], activation=layer.activation, dtype=dtype)


def _linear(layer: nn.Linear, dtype: torch.dtype) -> PreparedConv | None:
    plain = type(layer) is nn.Linear and layer.bias is not None
    return PreparedConv.linear(layer.weight, layer.bias, dtype) if plain else None


def _mbconv(layer: "effnet.blocks.MBConv", dtype: torch.dtype) -> PreparedMBConv | None:
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


def _network(network: "effnet.model.EfficientNet", dtype: torch.dtype) -> PreparedNetwork | None:
    if type(network) is not effnet.model.EfficientNet or not _is_nested(network.stages):
        return None
    if any(m.fused != network.fused for m in network.modules() if isinstance(m, Switchable)):
        return None
    blocks = [block for stage in network.stages for block in stage]  # type: ignore[attr-defined]
    features = []
    for block in (network.stem, *blocks, network.head):
        layers = _network_layers(block, dtype)
        if layers is None:
            return None
        features += layers
    classifier = _linear(network.classifier, dtype)
    return None if classifier is None else PreparedNetwork.make(features, classifier)


def _is_nested(stages: nn.Module) -> bool:
    sequences: Iterable[nn.Module] = (stages, *stages.children())
    return all(type(sequence) is nn.Sequential for sequence in sequences)


def _network_layers(block: nn.Module, dtype: torch.dtype) -> list[NetworkLayer] | None:
    if type(block) is effnet.blocks.ConvBNAct:
        conv = _conv(block, dtype)
        return None if conv is None else [NetworkLayer(conv, block.conv.padding_for)]
    if type(block) is effnet.blocks.MBConv:
        mbconv = _mbconv(block, dtype)
        return None if mbconv is None else [NetworkLayer(mbconv, block.depthwise.conv.padding_for)]
    if type(block) is effnet.blocks.FusedMBConv:
        convs = [block.project] if block.expand is None else [block.expand, block.project]
        layers = [_network_layers(conv, dtype) for conv in convs]
        flat = [each for known in layers if known is not None for each in known]
        if len(flat) < len(convs):
            return None
        return [*flat[:-1], replace(flat[-1], residual=len(convs) if block.has_skip else 0)]
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
