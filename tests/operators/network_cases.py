"""A small network of prepared layers, every kind among them, and what it computes layer by layer."""

import torch
from torch import Tensor

from effnet_kernels.arguments import same_padding, symmetric_padding
from effnet_kernels.ops.prepared import PreparedConv, PreparedMBConv
from effnet_kernels.ops.prepared_network import NetworkLayer, PaddingFor, PreparedNetwork, no_padding
from operators.cases import Values
from operators.inference_cases import Layer, MBConvCase
from tolerances import TOLERANCES, assert_close

CLASSES = 21


def conv(
    in_channels: int, out_channels: int, kernel: int, stride: int, dtype: torch.dtype, activation: str = "silu"
) -> PreparedConv:
    layer = Layer.draw(Values(out_channels, torch.float32), out_channels, in_channels, kernel, kernel)
    return PreparedConv.make(layer.weight, layer.bn, stride=stride, activation=activation, dtype=dtype)


def mbconv(
    in_channels: int, out_channels: int, stride: int, dtype: torch.dtype, *, squeezed: int = 5
) -> PreparedMBConv:
    residual = stride == 1 and in_channels == out_channels
    shape = (1, in_channels, 9, 9)
    case = MBConvCase(shape, 40, out_channels, squeezed, stride=stride, residual=residual, dtype=dtype)
    return case.prepare()


def same(kernel: int, stride: int) -> PaddingFor:
    return lambda height, width: same_padding(height, width, kernel, stride)


def layers(dtype: torch.dtype) -> list[NetworkLayer]:
    """A stem, MBConv with and without SE and skip, Fused-MBConv of one and of two convolutions, a head."""
    return [
        NetworkLayer(conv(3, 12, 3, 2, dtype), same(3, 2)),
        NetworkLayer(mbconv(12, 12, 1, dtype), lambda *_: symmetric_padding(3)),
        NetworkLayer(conv(12, 12, 3, 1, dtype), lambda *_: symmetric_padding(3), residual=1),
        NetworkLayer(conv(12, 48, 3, 1, dtype), lambda *_: symmetric_padding(3)),
        NetworkLayer(conv(48, 12, 1, 1, dtype, "identity"), no_padding, residual=2),
        NetworkLayer(mbconv(12, 20, 2, dtype, squeezed=0), same(3, 2)),
        NetworkLayer(conv(20, 130, 1, 1, dtype), no_padding),
    ]


def classifier(dtype: torch.dtype) -> PreparedConv:
    values = Values(7, torch.float32)
    return PreparedConv.linear(values.normal(CLASSES, 130, scale=0.1), values.normal(CLASSES), dtype)


def one_by_one(features: list[NetworkLayer], last: PreparedConv, x: Tensor) -> Tensor:
    before = x
    for each in features:
        padding = each.padding(x.shape[2], x.shape[3])
        if isinstance(each.layer, PreparedConv):
            added = {0: None, 1: x, 2: before}[each.residual]
            before, x = x, each.layer(x, padding, added)
        else:
            before, x = x, each.layer(x, padding)
    pooled = x.float().mean((2, 3), keepdim=True).to(x.dtype)
    return last(pooled, (0, 0, 0, 0)).flatten(1)


def pictures(batch: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch)).to(dtype)


def check(dtype: torch.dtype) -> None:
    """The network beside its layers, which have definitions of their own."""
    features, last = layers(dtype), classifier(dtype)
    network = PreparedNetwork.make(features, last)
    # A last map of one pixel, whose mean is itself, and one whose mean PyTorch adds up in another order.
    for size, exact in (((4, 3), True), ((19, 26), False), ((4, 4), True)):
        for batch in (0, 1, 3, 9):
            x = pictures(batch, *size, dtype)
            out, expected = network(x), one_by_one(features, last, x)
            assert out.shape == (batch, CLASSES) and out.dtype == dtype
            if exact:
                assert torch.equal(out, expected)
            else:
                assert_close(out, expected, TOLERANCES[dtype].forward, f"{size} {batch}")
