"""A fused MBConv block in inference on CPU: one operator over prepared weights, as ``effnet.prepared`` keeps them."""

from functools import partial

import torch
from torch import Tensor, nn

from effnet.fusion.segments import MBConv, Norm, Segment, autocast_keeps, explicit_padding, normalises
from effnet.prepared import prepared
from effnet_kernels.arguments import Padding
from effnet_kernels.nn import batch_norm_arguments, uses_batch_statistics
from effnet_kernels.ops.prepared import PreparedMBConv
from effnet_kernels.tensors import memory_format

Settings = tuple[str, str, bool]
"""Activation, gate and residual, which the block's parts have in their classes and not among their attributes."""


def run_prepared(block: nn.Module, segments: list[Segment], x: Tensor, *, has_skip: bool) -> Tensor | None:
    """The result of ``segments``, where they are all of an MBConv block; None where they and ``x`` do not allow it."""
    if len(segments) != 2:
        return None
    mbconv, norm = segments
    if not isinstance(mbconv, MBConv) or not isinstance(norm, Norm) or norm.activation != "identity":
        return None
    if not (mbconv.serves(x) and autocast_keeps(x) and normalises(norm.bn, x)):
        return None
    core = mbconv.core
    padding = explicit_padding(core.conv, x)
    if has_skip and not _keeps_size(core.conv, padding):
        return None
    gate = "sigmoid" if core.excite is None else core.excite.se.gate_name()
    settings = (core.norm2.activation, gate, has_skip)
    found = prepared(block, x, partial(_prepare, mbconv, norm, settings))
    if found is None or found[0] != settings:
        return None
    return found[1](x, padding).contiguous(memory_format=memory_format(x))


def _keeps_size(conv: nn.Conv2d, padding: Padding) -> bool:
    top, bottom, left, right = padding
    return conv.stride[0] == 1 and top + bottom == left + right == conv.weight.shape[2] - 1


def _prepare(
    mbconv: MBConv, norm3: Norm, settings: Settings, dtype: torch.dtype
) -> tuple[Settings, PreparedMBConv] | None:
    core, expand = mbconv.core, mbconv.expand
    norms = [n.bn for n in (core.norm1, core.norm2, norm3) if n is not None]
    in_channels = core.conv.weight.shape[0] if expand is None else expand.weight.shape[1]
    activation, gate, has_skip = settings
    if any(uses_batch_statistics(bn) for bn in norms) or (has_skip and mbconv.project.weight.shape[0] != in_channels):
        return None
    expansion = None
    if expand is not None and core.norm1 is not None:
        expansion = (expand.weight, batch_norm_arguments(core.norm1.bn))
    made = PreparedMBConv.make(
        expansion,
        (core.conv.weight, batch_norm_arguments(core.norm2.bn)),
        None if core.excite is None else core.excite.se.weights(),
        (mbconv.project.weight, batch_norm_arguments(norm3.bn)),
        stride=core.conv.stride[0],
        activation=activation,
        gate=gate,
        residual=has_skip,
        dtype=dtype,
    )
    return settings, made
