"""A classifier in inference on CPU as one operator over prepared weights.

Called one after the other, the operators of a network cost as much again as some of its layers: every call goes through
Python and PyTorch's dispatcher, whose code and data a picture's weights have driven out of the cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from effnet_kernels.arguments import Padding, output_size
from effnet_kernels.ops.prepared import PreparedConv, PreparedMBConv
from effnet_kernels.ops.registration import register
from effnet_kernels.ops.weight_memory import join
from effnet_kernels.tensors import autocast

PaddingFor = Callable[[int, int], Padding]
"""(top, bottom, left, right) for an input of some height and width."""

_CONV, _MBCONV, _POOL = 0, 1, 2
_KERNEL_SIZE, _STRIDE, _PADDING = 2, 3, 4
_MOST_PLANS = 64


def no_padding(_height: int, _width: int) -> Padding:
    """What a pointwise layer has."""
    return 0, 0, 0, 0


@dataclass(frozen=True)
class NetworkLayer:
    """One prepared layer of a network, the padding it takes, and what is added to its result.

    ``residual``: 1 for the layer's own input, 2 for that of the layer before, 0 for nothing. An MBConv block has a
    setting of its own, which counts in its place.
    """

    layer: PreparedConv | PreparedMBConv
    padding: PaddingFor = no_padding
    residual: int = 0


@dataclass(frozen=True)
class PreparedNetwork:
    """Layers one after the other, the mean over the pixels, and a classifier: (N, C, H, W) to (N, classes).

    Cost: every layer's, and nothing between them. The weights' copies lie in one piece, in the order in which they are
    read.
    """

    weights: Tensor
    rows: tuple[list[int], ...]
    """Every layer as ``network_inference`` reads it, but for its padding."""
    paddings: tuple[PaddingFor, ...]
    classes: int
    _plans: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @staticmethod
    def make(features: Sequence[NetworkLayer], classifier: PreparedConv) -> "PreparedNetwork":
        """From prepared layers, whose weights are copied, and the classifier as ``PreparedConv.linear`` prepares it."""
        last = NetworkLayer(classifier)
        pool = [_POOL] + [0] * (len(_row(last)) - 1)
        return PreparedNetwork(
            join([each.layer.weights for each in (*features, last)]),
            (*map(_row, features), pool, _row(last)),
            (*(each.padding for each in features), no_padding, no_padding),
            classifier.out_channels,
        )

    def __call__(self, x: Tensor) -> Tensor:
        x = autocast(x)
        size = x.shape[2], x.shape[3]
        plan = self._plans.get(size)
        if plan is None:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            plan = self._plans[size] = self._plan(*size)
        out: Tensor = torch.ops.effnet_kernels.network_inference.default(x, self.weights, plan, self.classes)
        return out

    def _plan(self, height: int, width: int) -> Tensor:
        """The rows with the paddings for an input of this size."""
        rows = []
        for row, padding in zip(self.rows, self.paddings, strict=True):
            if row[0] == _POOL:
                height = width = 1
                rows.append(row)
                continue
            top, bottom, left, right = padding(height, width)
            rows.append([*row[:_PADDING], top, bottom, left, right, *row[_PADDING + 4 :]])
            height = output_size(height, row[_KERNEL_SIZE], row[_STRIDE], top + bottom)
            width = output_size(width, row[_KERNEL_SIZE], row[_STRIDE], left + right)
        return torch.tensor(rows, dtype=torch.int64)


def _row(each: NetworkLayer) -> list[int]:
    """A ``PlanRow`` of csrc/network_inference/cpu.cpp, with zeros as the padding."""
    layer = each.layer
    if isinstance(layer, PreparedConv):
        sizes = [_CONV, layer.out_channels, layer.kernel_size, layer.stride, 0, 0, 0, 0]
        return [*sizes, layer.activation, layer.bfloat16_products, each.residual, 0, 0, 0, 0]
    channels, out_channels, squeezed, kernel_size, stride = layer.sizes
    sizes = [_MBCONV, out_channels, kernel_size, stride, 0, 0, 0, 0]
    settings = [layer.activation, layer.bfloat16_products, layer.residual]
    return [*sizes, *settings, channels, squeezed, layer.gate, layer.expands]


def _fake_network(x: Tensor, _weights: Tensor, _plan: Tensor, classes: int) -> Tensor:
    return x.new_empty((x.shape[0], classes))


register("network_inference", _fake_network)
