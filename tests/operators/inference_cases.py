"""The operators of inference over prepared weights, each beside its definition in float64."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

import effnet_kernels as ek
from effnet_kernels.activations import ACTIVATIONS
from effnet_kernels.arguments import Padding, symmetric_padding
from effnet_kernels.ops.prepared import PreparedConv, PreparedMBConv
from operators.cases import Shape, Values, batch_norm_of, laid_out
from tolerances import TOLERANCES, assert_close


def _double(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.double()


def _double_bn(bn: ek.BatchNorm) -> ek.BatchNorm:
    return bn._replace(**{name: _double(getattr(bn, name)) for name in ("gamma", "beta", "mean", "var")})


@dataclass
class Layer:
    """A convolution's weight and the BatchNorm after it."""

    weight: Tensor
    bn: ek.BatchNorm

    @staticmethod
    def draw(values: Values, *size: int) -> "Layer":
        weight = values.normal(*size, scale=(size[1] * size[2] * size[3]) ** -0.5)
        return Layer(weight, batch_norm_of(values.batch_norm(size[0]), "", False, 0.1, 1e-3))

    def define(self, x: Tensor, activation: str, stride: int, padding: Padding, groups: int = 1) -> Tensor:
        top, bottom, left, right = padding
        y = F.conv2d(F.pad(x, (left, right, top, bottom)), self.weight.double(), None, stride, 0, 1, groups)
        return ek.reference.batch_norm_act(y, _double_bn(self.bn), activation)


@dataclass
class MBConvCase:
    """One block and its input."""

    shape: Shape = (2, 12, 9, 7)
    channels: int = 40
    out_channels: int = 12
    squeezed: int = 5
    kernel: int = 3
    stride: int = 1
    padding: Padding | None = None
    expands: bool = True
    residual: bool = False
    activation: str = "silu"
    gate: str = "sigmoid"
    dtype: torch.dtype = torch.float32
    layout: str = "channels_last"
    mean: float = 0.0
    x: Tensor = field(init=False)

    def __post_init__(self) -> None:
        values = Values(0, torch.float32)
        in_channels = self.shape[1]
        channels = self.channels if self.expands else in_channels
        self.x = values.activations(self.shape, self.dtype, self.layout)
        self.x = laid_out(self.x + self.mean, self.layout)
        self.expand = Layer.draw(values, channels, in_channels, 1, 1) if self.expands else None
        self.depthwise = Layer.draw(values, channels, 1, self.kernel, self.kernel)
        self.se = None
        if self.squeezed:
            self.se = ek.SqueezeExcite(**values.squeeze_excite(channels, self.squeezed, (1, 1)))
        self.project = Layer.draw(values, self.out_channels, channels, 1, 1)
        self.groups = channels
        self.pads = self.padding or symmetric_padding(self.kernel)

    def prepare(self) -> PreparedMBConv:
        parts = [None if layer is None else (layer.weight, layer.bn) for layer in (self.expand, self.depthwise)]
        depthwise = parts[1]
        assert depthwise is not None
        return PreparedMBConv.make(
            parts[0],
            depthwise,
            self.se,
            (self.project.weight, self.project.bn),
            stride=self.stride,
            activation=self.activation,
            gate=self.gate,
            residual=self.residual,
            dtype=self.dtype,
        )

    def call(self, x: Tensor) -> Tensor:
        return self.prepare()(x, self.pads)

    def define(self, x: Tensor) -> Tensor:
        x = x.double()
        none = (0, 0, 0, 0)
        y = x if self.expand is None else self.expand.define(x, self.activation, 1, none)
        y = self.depthwise.define(y, self.activation, self.stride, self.pads, self.groups)
        if self.se is not None:
            se = ek.SqueezeExcite(*(t.double() for t in self.se))
            y = ek.reference.squeeze_excite(y, se, self.activation, self.gate)
        y = self.project.define(y, "identity", 1, none)
        return y + x if self.residual else y

    def check(self) -> None:
        out = self.call(self.x)
        assert out.dtype == self.dtype
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert_close(out, self.define(self.x), TOLERANCES[self.dtype].forward, repr(self))


@dataclass
class ConvCase:
    """One convolution with BatchNorm and its input."""

    shape: Shape = (2, 3, 9, 11)
    out_channels: int = 20
    kernel: int = 3
    stride: int = 1
    padding: Padding | None = None
    residual: bool = False
    activation: str = "silu"
    dtype: torch.dtype = torch.float32
    layout: str = "nchw"
    x: Tensor = field(init=False)

    def __post_init__(self) -> None:
        values = Values(0, torch.float32)
        self.x = values.activations(self.shape, self.dtype, self.layout)
        self.layer = Layer.draw(values, self.out_channels, self.shape[1], self.kernel, self.kernel)
        self.pads = self.padding or symmetric_padding(self.kernel)
        self.added = values.activations(tuple(self.define(self.x).shape), self.dtype, self.layout)  # type: ignore[arg-type]

    def call(self, x: Tensor) -> Tensor:
        weights = (self.layer.weight, self.layer.bn)
        prepared = PreparedConv.make(*weights, stride=self.stride, activation=self.activation, dtype=self.dtype)
        return prepared(x, self.pads, self.added if self.residual else None)

    def define(self, x: Tensor) -> Tensor:
        return self.layer.define(x.double(), self.activation, self.stride, self.pads)

    def check(self) -> None:
        out = self.call(self.x)
        expected = self.define(self.x)
        assert out.dtype == self.dtype
        assert_close(
            out,
            expected + self.added.double() if self.residual else expected,
            TOLERANCES[self.dtype].forward,
            repr(self),
        )


def check_every_path() -> None:
    """Each kernel, stride, activation and kind of tile once; what an instruction set is tried with."""
    for kernel in (3, 5, 7):
        for stride in (1, 2):
            MBConvCase(kernel=kernel, stride=stride).check()
            ConvCase(kernel=kernel, stride=stride, layout="channels_last").check()
    for activation in ACTIVATIONS:
        MBConvCase(activation=activation, gate="hardsigmoid").check()
        ConvCase(activation=activation).check()
    for channels in (16, 24, 48, 100, 200):
        MBConvCase((1, 24, 7, 15), channels=channels, out_channels=channels, squeezed=0).check()
    for dtype in (torch.float16, torch.bfloat16):
        MBConvCase(dtype=dtype, expands=False, residual=True).check()
        ConvCase(dtype=dtype, residual=True).check()
    # Products of bfloat16, but where a number of channels is odd.
    for in_channels, channels in ((12, 40), (12, 41), (11, 40), (12, 130)):
        for shape in ((2, in_channels, 9, 7), (1, in_channels, 3, 2)):
            MBConvCase(shape, channels=channels, dtype=torch.bfloat16, residual=True, out_channels=in_channels).check()
        ConvCase((2, in_channels, 9, 11), kernel=1, out_channels=33, dtype=torch.bfloat16, residual=True).check()
    MBConvCase((1, 8, 30, 130), channels=50, kernel=5, stride=2).check()
