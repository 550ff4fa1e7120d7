"""Cases: one call of an operator each, as its tensors by name, the call, and its definition in plain PyTorch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import effnet_kernels as ek
from effnet_kernels.activations import ACTIVATIONS
from effnet_kernels.arguments import Padding, symmetric_padding
from effnet_kernels.reference.depthwise_conv_bn_act import depthwise_conv

Tensors = Mapping[str, Tensor]
Shape = tuple[int, int, int, int]

DIFFERENTIABLE = (
    *("x", "residual", "w", "gamma", "beta", "gamma1", "beta1", "gamma2", "beta2", "w1", "b1", "w2", "b2"),
    *("w_expand", "w_project"),
)
RUNNING_STATISTICS = ("mean", "var", "mean1", "var1", "mean2", "var2")


class Stored(NamedTuple):
    """The dtypes in which a call writes to memory what the formulas only pass on; float64 is not at all.

    Attributes:
        y: the depthwise output, which is kept for backward.
        a: act(BN1(u)), where it is written before the convolution reads it.
        dy: the gradient of y, where it is written before the convolution's gradient reads it.
        u: the expansion's output, which is kept for backward.
    """

    y: torch.dtype = torch.float64
    a: torch.dtype = torch.float64
    dy: torch.dtype = torch.float64
    u: torch.dtype = torch.float64


@dataclass(frozen=True)
class Case:
    """One call of an operator. The activations are ``x`` in every operator."""

    name: str
    tensors: Tensors
    call: Callable[[Tensors], Tensor]
    define: Callable[[Tensors, Stored], Tensor]
    """The definition."""
    keywords: Callable[[Tensors], dict[str, Any]] = lambda t: {}
    """The arguments of the call that are not tensors of its own."""

    def with_tensors(self, **tensors: Tensor) -> "Case":
        """This case with some tensors replaced."""
        return replace(self, tensors={**self.tensors, **tensors})

    def on(self, device: torch.device) -> "Case":
        """This case with every tensor on ``device``, in the layout that it has."""
        return self.with_tensors(**{name: t.to(device) for name, t in self.tensors.items()})


def laid_out(x: Tensor, layout: str) -> Tensor:
    """``x`` dense in ``nchw`` or ``channels_last``."""
    return x.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)


class Values:
    """Reproducible random tensors, drawn in float64 so that every dtype sees the same numbers up to rounding."""

    def __init__(self, seed: int, parameters: torch.dtype) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.parameters = parameters

    def normal(self, *shape: int, scale: float = 1.0, offset: float = 0.0) -> Tensor:
        values = torch.randn(*shape, generator=self.generator, dtype=torch.float64) * scale + offset
        return values.to(self.parameters)

    def uniform(self, *shape: int, low: float = 0.5, high: float = 1.5) -> Tensor:
        values = torch.rand(*shape, generator=self.generator, dtype=torch.float64) * (high - low) + low
        return values.to(self.parameters)

    def activations(self, shape: Shape, dtype: torch.dtype, layout: str) -> Tensor:
        """Unit variance around a mean of its own for every channel."""
        means = torch.randn(1, shape[1], 1, 1, generator=self.generator, dtype=torch.float64) * 0.5
        values = torch.randn(*shape, generator=self.generator, dtype=torch.float64) + means
        return laid_out(values.to(dtype), layout)

    def batch_norm(self, channels: int, suffix: str = "") -> dict[str, Tensor]:
        return {
            f"gamma{suffix}": self.uniform(channels),
            f"beta{suffix}": self.normal(channels, scale=0.5),
            f"mean{suffix}": self.normal(channels, scale=0.3),
            f"var{suffix}": self.uniform(channels),
        }

    def squeeze_excite(self, channels: int, squeezed: int, trailing: tuple[int, ...]) -> dict[str, Tensor]:
        return {
            "w1": self.normal(squeezed, channels, *trailing, scale=channels**-0.5),
            "b1": self.normal(squeezed, scale=0.5),
            "w2": self.normal(channels, squeezed, *trailing, scale=squeezed**-0.5),
            "b2": self.normal(channels, scale=0.5),
        }


def parameter_dtype(dtype: torch.dtype, parameters: str) -> torch.dtype:
    """float32 parameters as mixed precision has them, or all in the activations' dtype (always so for float64)."""
    return torch.float32 if parameters == "float32" and dtype != torch.float64 else dtype


class _Stored(torch.autograd.Function):
    """A round trip through memory: of the value in one dtype, of its gradient in another."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, dtype: torch.dtype, gradient: torch.dtype) -> Tensor:
        ctx.gradient = gradient
        return value.to(dtype, copy=True).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.to(ctx.gradient).to(grad.dtype), None, None


def stored(value: Tensor, dtype: torch.dtype, gradient: torch.dtype = torch.float64) -> Tensor:
    """``value`` as it is after a round trip through memory in ``dtype``, and its gradient after one in ``gradient``."""
    return _Stored.apply(value, dtype, gradient)


def squeezed_and_excited(x: Tensor, se: ek.SqueezeExcite, activation: str, gate: str) -> Tensor:
    """The reference, with an exact hardsigmoid: the float64 gradient of PyTorch's holds a sixth rounded to float32."""
    if gate != "hardsigmoid":
        return ek.reference.squeeze_excite(x, se, activation, gate)
    w1, w2 = se.w1.flatten(1), se.w2.flatten(1)
    hidden = ACTIVATIONS[activation](x.mean((2, 3)) @ w1.t() + se.b1)
    scale = F.relu6(hidden @ w2.t() + se.b2 + 3) / 6
    return x * scale[:, :, None, None]


def batch_norm_of(t: Tensors, suffix: str, training: bool, momentum: float, eps: float) -> ek.BatchNorm:
    gamma, beta, mean, var = (t.get(name + suffix) for name in ("gamma", "beta", "mean", "var"))
    return ek.BatchNorm(gamma, beta, mean, var, training, momentum, eps)


def batch_norm_act_case(
    shape: Shape = (2, 8, 5, 7),
    *,
    dtype: torch.dtype = torch.float32,
    layout: str = "nchw",
    parameters: str = "float32",
    training: bool = True,
    activation: str = "silu",
    keep: bool = False,
    residual: bool = False,
    affine: bool = True,
    statistics: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    seed: int = 0,
) -> Case:
    values = Values(seed, parameter_dtype(dtype, parameters))
    tensors = {"x": values.activations(shape, dtype, layout)}
    for name, tensor in values.batch_norm(shape[1]).items():
        if affine if name in ("gamma", "beta") else statistics:
            tensors[name] = tensor
    if residual:
        tensors["residual"] = values.activations(shape, dtype, layout)
    if keep:
        # Drop-connect: the first sample of every three is dropped, the others are divided by their survival.
        survival = [0.0 if n % 3 == 0 and shape[0] > 1 else 1.25 for n in range(shape[0])]
        tensors["keep"] = torch.tensor(survival, dtype=parameter_dtype(dtype, parameters))

    def call(t: Tensors) -> Tensor:
        gamma, beta, mean, var = (t.get(name) for name in ("gamma", "beta", "mean", "var"))
        options = {"training": training, "momentum": momentum, "eps": eps, "activation": activation}
        return ek.batch_norm_act(
            t["x"], gamma, beta, mean, var, keep=t.get("keep"), residual=t.get("residual"), **options
        )

    def define(t: Tensors, dtypes: Stored) -> Tensor:
        bn = batch_norm_of(t, "", training, momentum, eps)
        return ek.reference.batch_norm_act(t["x"], bn, activation, t.get("keep"), t.get("residual"))

    return Case("batch_norm_act", tensors, call, define)


def depthwise_conv_bn_act_case(
    shape: Shape = (2, 8, 9, 7),
    *,
    kernel: int = 3,
    stride: int = 1,
    padding: Padding | None = None,
    dtype: torch.dtype = torch.float32,
    layout: str = "nchw",
    parameters: str = "float32",
    training: bool = True,
    activation: str = "silu",
    affine: bool = True,
    statistics: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    seed: int = 0,
) -> Case:
    pads = symmetric_padding(kernel) if padding is None else padding
    values = Values(seed, parameter_dtype(dtype, parameters))
    tensors = {"x": values.activations(shape, dtype, layout)}
    tensors["w"] = values.normal(shape[1], 1, kernel, kernel, scale=1 / kernel)
    for name, tensor in values.batch_norm(shape[1]).items():
        if affine if name in ("gamma", "beta") else statistics:
            tensors[name] = tensor

    def call(t: Tensors) -> Tensor:
        gamma, beta, mean, var = (t.get(name) for name in ("gamma", "beta", "mean", "var"))
        options = {"training": training, "momentum": momentum, "eps": eps, "activation": activation}
        return ek.depthwise_conv_bn_act(t["x"], t["w"], gamma, beta, mean, var, stride=stride, padding=pads, **options)

    def define(t: Tensors, dtypes: Stored) -> Tensor:
        y = stored(depthwise_conv(t["x"], t["w"], stride, pads), dtypes.y, dtypes.dy)
        return ek.reference.batch_norm_act(y, batch_norm_of(t, "", training, momentum, eps), activation)

    return Case("depthwise_conv_bn_act", tensors, call, define)


def squeeze_excite_case(
    shape: Shape = (2, 8, 5, 7),
    *,
    squeezed: int = 3,
    dtype: torch.dtype = torch.float32,
    layout: str = "nchw",
    parameters: str = "float32",
    weights: str = "matrix",
    activation: str = "silu",
    gate: str = "sigmoid",
    seed: int = 0,
) -> Case:
    values = Values(seed, parameter_dtype(dtype, parameters))
    tensors = {"x": values.activations(shape, dtype, layout)}
    tensors |= values.squeeze_excite(shape[1], squeezed, (1, 1) if weights == "convolution" else ())

    def call(t: Tensors) -> Tensor:
        return ek.squeeze_excite(t["x"], t["w1"], t["b1"], t["w2"], t["b2"], activation=activation, gate=gate)

    def define(t: Tensors, dtypes: Stored) -> Tensor:
        se = ek.SqueezeExcite(t["w1"], t["b1"], t["w2"], t["b2"])
        return squeezed_and_excited(t["x"], se, activation, gate)

    return Case("squeeze_excite", tensors, call, define)


def mbconv_core_case(
    shape: Shape = (2, 8, 9, 7),
    *,
    kernel: int = 3,
    stride: int = 1,
    padding: Padding | None = None,
    dtype: torch.dtype = torch.float32,
    layout: str = "nchw",
    parameters: str = "float32",
    bn1: str | None = "training",
    bn2: str = "training",
    se: str | None = "matrix",
    squeezed: int = 3,
    activation: str = "silu",
    gate: str = "sigmoid",
    affine: bool = True,
    statistics: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    seed: int = 0,
) -> Case:
    """``bn1`` and ``bn2`` are ``training`` or ``frozen`` (None: there is none), ``se`` the form of its weights."""
    pads = symmetric_padding(kernel) if padding is None else padding
    values = Values(seed, parameter_dtype(dtype, parameters))
    tensors = {"x": values.activations(shape, dtype, layout)}
    tensors["w"] = values.normal(shape[1], 1, kernel, kernel, scale=1 / kernel)
    for suffix in ("2",) if bn1 is None else ("1", "2"):
        for name, tensor in values.batch_norm(shape[1], suffix).items():
            if affine if name.startswith(("gamma", "beta")) else statistics:
                tensors[name] = tensor
    if se is not None:
        tensors |= values.squeeze_excite(shape[1], squeezed, (1, 1) if se == "convolution" else ())

    def arguments(t: Tensors) -> tuple[ek.BatchNorm | None, ek.BatchNorm, ek.SqueezeExcite | None]:
        return (
            None if bn1 is None else batch_norm_of(t, "1", bn1 == "training", momentum, eps),
            batch_norm_of(t, "2", bn2 == "training", momentum, eps),
            None if se is None else ek.SqueezeExcite(t["w1"], t["b1"], t["w2"], t["b2"]),
        )

    def keywords(t: Tensors) -> dict[str, Any]:
        first, second, excite = arguments(t)
        settings = {"stride": stride, "padding": pads, "activation": activation, "gate": gate}
        return {"bn2": second, "bn1": first, "se": excite, **settings}

    def call(t: Tensors) -> Tensor:
        return ek.mbconv_core(t["x"], t["w"], **keywords(t))

    def define(t: Tensors, dtypes: Stored) -> Tensor:
        first, second, excite = arguments(t)
        a = t["x"] if first is None else ek.reference.batch_norm_act(t["x"], first, activation)
        y = stored(depthwise_conv(stored(a, dtypes.a), t["w"], stride, pads), dtypes.y, dtypes.dy)
        z = ek.reference.batch_norm_act(y, second, activation)
        return z if excite is None else squeezed_and_excited(z, excite, activation, gate)

    return Case("mbconv_core", tensors, call, define, keywords)


def pointwise_conv_case(
    shape: Shape = (2, 8, 5, 7),
    *,
    out_channels: int = 19,
    dtype: torch.dtype = torch.float32,
    layout: str = "channels_last",
    parameters: str = "float32",
    seed: int = 0,
) -> Case:
    values = Values(seed, parameter_dtype(dtype, parameters))
    tensors = {"x": values.activations(shape, dtype, layout)}
    tensors["w"] = values.normal(out_channels, shape[1], 1, 1, scale=shape[1] ** -0.5)

    def call(t: Tensors) -> Tensor:
        return ek.pointwise_conv(t["x"], t["w"])

    def define(t: Tensors, dtypes: Stored) -> Tensor:
        return F.conv2d(t["x"], t["w"])

    return Case("pointwise_conv", tensors, call, define)


def mbconv_case(
    shape: Shape = (2, 8, 9, 7),
    *,
    expanded: int | None = 19,
    out_channels: int = 11,
    dtype: torch.dtype = torch.float32,
    layout: str = "channels_last",
    parameters: str = "float32",
    bn1: str = "training",
    seed: int = 0,
    **core: Any,
) -> Case:
    """``expanded`` is the number of channels in the middle (None: no expansion and no BN1); ``core`` as above."""
    values = Values(seed + 1, parameter_dtype(dtype, parameters))
    channels = shape[1] if expanded is None else expanded
    middle = mbconv_core_case(
        (1, channels, *shape[2:]),
        dtype=dtype,
        parameters=parameters,
        bn1=None if expanded is None else bn1,
        seed=seed,
        **core,
    )
    tensors = {**middle.tensors, "x": values.activations(shape, dtype, layout)}
    if expanded is not None:
        tensors["w_expand"] = values.normal(expanded, shape[1], 1, 1, scale=shape[1] ** -0.5)
    tensors["w_project"] = values.normal(out_channels, channels, 1, 1, scale=channels**-0.5)

    def call(t: Tensors) -> Tensor:
        arguments = middle.keywords(t)
        return ek.mbconv(t["x"], t["w"], t["w_project"], w_expand=t.get("w_expand"), **arguments)

    def define(t: Tensors, dtypes: Stored) -> Tensor:
        u = stored(F.conv2d(t["x"], t["w_expand"]), dtypes.u) if "w_expand" in t else t["x"]
        return F.conv2d(middle.define({**t, "x": u}, dtypes), t["w_project"])

    return Case("mbconv", tensors, call, define)


CASES: Mapping[str, Callable[..., Case]] = {
    "batch_norm_act": batch_norm_act_case,
    "depthwise_conv_bn_act": depthwise_conv_bn_act_case,
    "squeeze_excite": squeeze_excite_case,
    "mbconv_core": mbconv_core_case,
}
"""A case of every operator, built from keyword arguments that all have defaults."""


CPU_CASES: Mapping[str, Callable[..., Case]] = {"pointwise_conv": pointwise_conv_case, "mbconv": mbconv_case}
"""Of the operators that only the CPU has; elsewhere their public functions call others."""

EVERY_CASE: Mapping[str, Callable[..., Case]] = {**CASES, **CPU_CASES}
