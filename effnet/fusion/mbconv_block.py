"""The ``MBConvBlock`` that ``efficientnet_pytorch``, ``efficientnet_lite_pytorch`` and
``segmentation_models_pytorch`` each have a copy of, and their convolutions with SAME padding."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effnet.fusion.chain import Step
from effnet.fusion.modules import Branch, FusedBlock, is_known, runs_fused
from effnet.fusion.parts import ACTIVATIONS, PADDINGS, SAME, Excitation, why_called
from effnet_kernels.arguments import Padding

DropConnect = Callable[..., Tensor]

EXPANSION = "_expand_conv _bn0 _swish _depthwise_conv _bn1"
LAYERS = "F adaptive_avg_pool2d _se_reduce _se_expand torch sigmoid _project_conv _bn2"
FORWARD_OF_ARGUMENTS = (
    f"_block_args expand_ratio {EXPANSION} has_se {LAYERS} "
    "input_filters output_filters id_skip stride drop_connect training"
)
"""The names that the forward visits where the block's arguments are asked for its structure."""


def layers(block: Any, *, expands: bool, excites: bool) -> list[Step]:
    """The block's layers up to its last BatchNorm."""
    expansion = [block._expand_conv, block._bn0, block._swish] if expands else []
    depthwise = [block._depthwise_conv, block._bn1, block._swish]
    excitation = [_excitation(block)] if excites else []
    return [*expansion, *depthwise, *excitation, block._project_conv, block._bn2]


def _excitation(block: Any) -> Excitation:
    call = partial(_excite, block)
    return Excitation(block._se_reduce, block._swish, block._se_expand, "sigmoid", call)


def _excite(block: Any, x: Tensor) -> Tensor:
    pooled = F.adaptive_avg_pool2d(x, 1)
    return torch.sigmoid(block._se_expand(block._swish(block._se_reduce(pooled)))) * x


class FusedMBConvBlock(FusedBlock):
    """What the copies share: how much is dropped is an argument of the call."""

    library_drop_connect: DropConnect
    """The copy's own function, which a class keeps as a static method."""

    def fused_branch(self: Any, drop_connect_rate: float | None = None) -> Branch:
        return branch(self, self.structure(), self.library_drop_connect, drop_connect_rate)

    def structure(self) -> tuple[bool, bool, bool]:
        """Whether the block expands, excites and adds its input; here, by its arguments."""
        return structure_of_arguments(self)

    def forward(self, inputs: Any, drop_connect_rate: float | None = None) -> Any:
        if not runs_fused(inputs):
            return super(FusedBlock, self).forward(inputs, drop_connect_rate)
        return self.fused_branch(drop_connect_rate).run(self, inputs)


def branch(block: Any, structure: tuple[bool, bool, bool], drop_connect: DropConnect, rate: float | None) -> Branch:
    """``structure``: whether the block expands, excites and adds its input."""
    expands, excites, has_skip = structure
    drop = partial(drop_connect, p=rate, training=block.training) if rate else None
    return Branch(layers(block, expands=expands, excites=excites), has_skip, drop, block.training)


def structure_of_arguments(block: Any) -> tuple[bool, bool, bool]:
    """Whether the block expands, excites and adds its input, where its arguments say so."""
    arguments = block._block_args
    keeps_shape = arguments.stride == 1 and arguments.input_filters == arguments.output_filters
    return arguments.expand_ratio != 1, block.has_se, bool(block.id_skip and keeps_shape)


def register_convolutions(static: type[nn.Module], dynamic: type[nn.Module]) -> None:
    """The library's convolutions with SAME padding, for an image size that is given and for any."""
    if is_known(static, "static_padding F conv2d weight bias stride padding dilation groups"):
        PADDINGS[static] = _static_padding
    size = "size weight stride math ceil max dilation F pad conv2d bias padding groups"
    if is_known(dynamic, size):
        PADDINGS[dynamic] = _dynamic_padding


def _static_padding(conv: Any) -> Padding | str:
    rows, columns = conv.padding
    if why_called(conv.static_padding) is not None:
        return f"padding {why_called(conv.static_padding)}"
    left, right, top, bottom = 0, 0, 0, 0
    if type(conv.static_padding) is nn.ZeroPad2d:
        left, right, top, bottom = conv.static_padding.padding
    elif type(conv.static_padding).__name__ != "Identity":
        return f"padding {type(conv.static_padding).__name__}"
    return (rows + top, rows + bottom, columns + left, columns + right)


def _dynamic_padding(conv: Any) -> Padding | str:
    return SAME if tuple(conv.padding) == (0, 0) else f"padding {conv.padding} on top of SAME"


def register_swish(swish: type[nn.Module]) -> None:
    if is_known(swish, "SwishImplementation apply"):
        ACTIVATIONS[swish] = "silu"
