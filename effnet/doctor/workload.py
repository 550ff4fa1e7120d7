"""The operators at the shapes of EfficientNet-B0: their tensors, the call, the definition, and what memory moves.

Traffic is counted in elements of the activations, by the sums of docs/design.md; weights and vectors are not counted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

import effnet_kernels as ek
from effnet_kernels.arguments import output_size, symmetric_padding

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class BlockShape:
    """What lies between the 1×1 convolutions of one block of EfficientNet-B0 at 224×224.

    Attributes:
        channels: after the expansion.
        side: of the square image before the depthwise convolution.
        kernel: of the depthwise convolution, as is ``stride``.
        stride: 1 or 2.
        expansion: channels over the block's input channels; 1 where there is no expansion and so no BN1.
    """

    channels: int
    side: int
    kernel: int
    stride: int
    expansion: int = 6

    @property
    def squeezed(self) -> int:
        """Of squeeze-and-excite's hidden layer: a quarter of the block's input channels."""
        return self.channels // (4 * self.expansion)

    @property
    def side_out(self) -> int:
        """After the depthwise convolution."""
        return output_size(self.side, self.kernel, self.stride, 2 * symmetric_padding(self.kernel)[0])

    def elements(self, batch: int) -> tuple[int, int]:
        """Before and after the depthwise convolution: Ein and Eout of docs/design.md."""
        return batch * self.channels * self.side**2, batch * self.channels * self.side_out**2

    @property
    def image(self) -> str:
        """What goes in, as channels@side."""
        return f"{self.channels}@{self.side}"

    def __str__(self) -> str:
        return f"{self.image} k{self.kernel} s{self.stride}"


QUICK_SHAPES = (BlockShape(240, 28, 5, 1), BlockShape(1152, 7, 3, 1))
SHAPES = (
    BlockShape(32, 112, 3, 1, expansion=1),
    BlockShape(96, 112, 3, 2),
    BlockShape(144, 56, 5, 2),
    QUICK_SHAPES[0],
    BlockShape(672, 14, 5, 1),
    QUICK_SHAPES[1],
)


class Traffic(NamedTuple):
    """Elements that are read and written at least, by forward and by backward."""

    forward: int
    backward: int


def batch_norm_act_traffic(elements: int, *, training: bool, residual: bool = False) -> Traffic:
    """x twice (statistics, then the result; in inference once), a residual, and out; (grad, x) twice and dx."""
    return Traffic((2 + training + residual) * elements, 5 * elements)


def depthwise_conv_bn_act_traffic(e_in: int, e_out: int, *, training: bool) -> Traffic:
    """x, y written and read again, and out (in inference x and out); (grad, y) twice, x and dx."""
    return Traffic(e_in + (3 if training else 1) * e_out, 2 * e_in + 4 * e_out)


def squeeze_excite_traffic(elements: int) -> Traffic:
    """x to pool, x to scale, and out; (grad, x) for the gate's gradient, grad again, and dx."""
    return Traffic(3 * elements, 4 * elements)


def mbconv_core_traffic(e_in: int, e_out: int, *, training: bool, bn1: bool = True, se: bool = True) -> Traffic:
    """The passes F1–F4 and B1–B3 of docs/design.md, or in inference the depthwise kernel and SE's scale.

    With BN1 and SE: 2 Ein + 4 Eout forward, 5 Ein + 4 Eout backward, Ein + 3 Eout in inference.
    """
    backward = (2 + 3 * bn1) * e_in + 4 * e_out
    if not training:
        return Traffic(e_in + (1 + 2 * se) * e_out, backward)
    return Traffic((1 + bn1) * e_in + (3 + se) * e_out, backward)


class Operator(NamedTuple):
    """How one operator is called at a :class:`BlockShape`.

    Attributes:
        tensors: (shape, batch) to the name and the shape of its tensors; ``x`` are the activations.
        call: the operator itself, as (tensors, shape, training).
        define: its definition, likewise.
        traffic: (shape, batch, training) to what it moves.
    """

    tensors: Callable[[BlockShape, int], dict[str, tuple[int, ...]]]
    call: Callable[[Tensors, BlockShape, bool], Tensor]
    define: Callable[[Tensors, BlockShape, bool], Tensor]
    traffic: Callable[[BlockShape, int, bool], Traffic]


def _activations(shape: BlockShape, batch: int) -> tuple[int, ...]:
    return (batch, shape.channels, shape.side, shape.side)


def _bn_shapes(shape: BlockShape, suffix: str = "") -> dict[str, tuple[int, ...]]:
    return {name + suffix: (shape.channels,) for name in ("gamma", "beta", "mean", "var")}


def _se_shapes(shape: BlockShape) -> dict[str, tuple[int, ...]]:
    channels, squeezed = shape.channels, shape.squeezed
    return {"w1": (squeezed, channels), "b1": (squeezed,), "w2": (channels, squeezed), "b2": (channels,)}


def _weight_shape(shape: BlockShape) -> dict[str, tuple[int, ...]]:
    return {"w": (shape.channels, 1, shape.kernel, shape.kernel)}


def _bn(t: Tensors, training: bool, suffix: str = "") -> ek.BatchNorm:
    gamma, beta, mean, var = (t[name + suffix] for name in ("gamma", "beta", "mean", "var"))
    return ek.BatchNorm(gamma, beta, mean, var, training)


def _bn1(t: Tensors, training: bool) -> ek.BatchNorm | None:
    return _bn(t, training, "1") if "gamma1" in t else None


def _se(t: Tensors) -> ek.SqueezeExcite:
    return ek.SqueezeExcite(t["w1"], t["b1"], t["w2"], t["b2"])


def _affine(t: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return t["gamma"], t["beta"], t["mean"], t["var"]


OPERATORS: Mapping[str, Operator] = {
    # As after the projection of a block with a skip.
    "batch_norm_act": Operator(
        lambda s, n: {"x": _activations(s, n), "residual": _activations(s, n), **_bn_shapes(s)},
        lambda t, s, training: ek.batch_norm_act(t["x"], *_affine(t), training=training, residual=t["residual"]),
        lambda t, s, training: ek.reference.batch_norm_act(t["x"], _bn(t, training), residual=t["residual"]),
        lambda s, n, training: batch_norm_act_traffic(s.elements(n)[0], training=training, residual=True),
    ),
    "depthwise_conv_bn_act": Operator(
        lambda s, n: {"x": _activations(s, n), **_weight_shape(s), **_bn_shapes(s)},
        lambda t, s, training: ek.depthwise_conv_bn_act(
            t["x"], t["w"], *_affine(t), stride=s.stride, training=training
        ),
        lambda t, s, training: ek.reference.depthwise_conv_bn_act(
            t["x"], t["w"], _bn(t, training), s.stride, symmetric_padding(s.kernel)
        ),
        lambda s, n, training: depthwise_conv_bn_act_traffic(*s.elements(n), training=training),
    ),
    "squeeze_excite": Operator(
        lambda s, n: {"x": _activations(s, n), **_se_shapes(s)},
        lambda t, s, training: ek.squeeze_excite(t["x"], *_se(t)),
        lambda t, s, training: ek.reference.squeeze_excite(t["x"], _se(t)),
        lambda s, n, training: squeeze_excite_traffic(s.elements(n)[0]),
    ),
    "mbconv_core": Operator(
        lambda s, n: {
            "x": _activations(s, n),
            **_weight_shape(s),
            **(_bn_shapes(s, "1") if s.expansion > 1 else {}),
            **_bn_shapes(s, "2"),
            **_se_shapes(s),
        },
        lambda t, s, training: ek.mbconv_core(
            t["x"], t["w"], _bn(t, training, "2"), bn1=_bn1(t, training), se=_se(t), stride=s.stride
        ),
        lambda t, s, training: ek.reference.mbconv_core(
            t["x"], t["w"], _bn(t, training, "2"), _bn1(t, training), _se(t), s.stride, symmetric_padding(s.kernel)
        ),
        lambda s, n, training: mbconv_core_traffic(*s.elements(n), training=training, bn1=s.expansion > 1),
    ),
}
