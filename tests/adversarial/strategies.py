"""Calls of the public operators that are good, and what may be done to one or two of their arguments."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

import effnet_kernels as ek
from effnet_kernels.arguments import check_depthwise
from operators.axes import ACTIVATIONS, DTYPES, GATES, LAYOUTS
from operators.cases import RUNNING_STATISTICS, Values, laid_out

Arguments = dict[str, Any]
"""By name. A BatchNorm's fields and squeeze-and-excite's stand for themselves, with the BatchNorm's number behind."""

SHAPES = ((2, 8, 5, 7), (3, 5, 6, 5), (1, 16, 9, 9), (5, 1, 4, 6), (2, 33, 8, 4))
SQUEEZED = 3
EPS = 0.1
"""Large, so that rounding is not what a channel's small variance makes of it."""


@dataclass(frozen=True)
class Operator:
    """A public operator: how it is called, its definition, and which of its arguments are optional groups.

    Attributes:
        call: from the arguments by name.
        define: the same in plain PyTorch, in float64.
        batch_norms: the numbers of its BatchNorms.
        names: what an error may begin with beside the arguments' own names.
    """

    call: Callable[[Arguments], Any]
    define: Callable[[Arguments], Any]
    batch_norms: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


def batch_norm(a: Arguments, number: str) -> Any:
    if f"bn{number}" in a:
        return a[f"bn{number}"]
    if f"gamma{number}" not in a:
        return None
    return ek.BatchNorm(*(a[name + number] for name in ek.BatchNorm._fields))


def squeeze_excite(a: Arguments) -> Any:
    return a["se"] if "se" in a else None if "w1" not in a else ek.SqueezeExcite(a["w1"], a["b1"], a["w2"], a["b2"])


def _rest(a: Arguments, *names: str) -> Arguments:
    return {name: a[name] for name in names if name in a}


def _core(a: Arguments, *positional: str) -> tuple[list[Any], Arguments]:
    keywords = {"bn1": batch_norm(a, "1"), "se": squeeze_excite(a)}
    keywords |= _rest(a, "w_expand", "stride", "padding", "activation", "gate")
    return [*(a[name] for name in positional), batch_norm(a, "2")], keywords


def _call_core(a: Arguments) -> Tensor:
    positional, keywords = _core(a, "u", "w")
    return ek.mbconv_core(*positional, **keywords)


def _call_unscaled(a: Arguments) -> tuple[Tensor, Tensor]:
    positional, keywords = _core(a, "u", "w")
    return ek.mbconv_core_unscaled(*positional, **keywords)


def _call_mbconv(a: Arguments) -> Tensor:
    positional, keywords = _core(a, "x", "w", "w_project")
    return ek.mbconv(*positional, **keywords)


def _define_batch_norm_act(a: Arguments) -> Tensor:
    return ek.reference.batch_norm_act(a["x"], batch_norm(a, ""), a["activation"], a["keep"], a["residual"])


def _define_depthwise(a: Arguments) -> Tensor:
    pads = check_depthwise(a["w"], a["x"], a["stride"], a["padding"])
    return ek.reference.depthwise_conv_bn_act(a["x"], a["w"], batch_norm(a, ""), a["stride"], pads, a["activation"])


def _define_squeeze_excite(a: Arguments) -> Tensor:
    return ek.reference.squeeze_excite(a["x"], squeeze_excite(a), a["activation"], a["gate"])


def _middle(a: Arguments, u: Tensor, se: Any) -> Tensor:
    pads = check_depthwise(a["w"], u, a["stride"], a["padding"])
    return ek.reference.mbconv_core(
        u, a["w"], batch_norm(a, "2"), batch_norm(a, "1"), se, a["stride"], pads, a["activation"], a["gate"]
    )


def _define_core(a: Arguments) -> Tensor:
    return _middle(a, a["u"], squeeze_excite(a))


def _define_unscaled(a: Arguments) -> tuple[Tensor, Tensor]:
    z = _middle(a, a["u"], None)
    return z, ek.reference.excitation(z, squeeze_excite(a), a["activation"], a["gate"])


def _define_mbconv(a: Arguments) -> Tensor:
    u = a["x"] if a.get("w_expand") is None else F.conv2d(a["x"], a["w_expand"])
    return F.conv2d(_middle(a, u, squeeze_excite(a)), a["w_project"])


OPERATORS: Mapping[str, Operator] = {
    "batch_norm_act": Operator(lambda a: ek.batch_norm_act(**a), _define_batch_norm_act, ("",)),
    "depthwise_conv_bn_act": Operator(lambda a: ek.depthwise_conv_bn_act(**a), _define_depthwise, ("",)),
    "squeeze_excite": Operator(lambda a: ek.squeeze_excite(**a), _define_squeeze_excite),
    "pointwise_conv": Operator(lambda a: ek.pointwise_conv(**a), lambda a: F.conv2d(a["x"], a["w"])),
    "mbconv_core": Operator(_call_core, _define_core, ("1", "2"), ("bn1", "bn2", "se")),
    "mbconv_core_unscaled": Operator(_call_unscaled, _define_unscaled, ("1", "2"), ("bn1", "bn2", "se")),
    "mbconv": Operator(_call_mbconv, _define_mbconv, ("1", "2"), ("bn1", "bn2", "se", "u")),
}


@dataclass(frozen=True)
class Good:
    """Which good call: everything that its arguments are made from."""

    operator: str
    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    layout: str
    training: tuple[bool, bool]
    affine: bool
    running: bool
    activation: str
    gate: str
    kernel: int
    stride: int
    bn1: bool
    se: bool
    gradient: bool

    def arguments(self) -> Arguments:
        a = self._arguments()
        for name, t in a.items():
            if isinstance(t, Tensor) and self.gradient and name not in (*RUNNING_STATISTICS, "keep"):
                t.requires_grad_()
        return a

    def _arguments(self) -> Arguments:
        parameters = torch.float64 if self.dtype == torch.float64 else torch.float32
        values, channels = Values(0, parameters), self.shape[1]
        x = values.activations(self.shape, self.dtype, self.layout)
        if self.operator == "pointwise_conv":
            return {"x": x, "w": values.normal(6, channels, 1, 1, scale=channels**-0.5)}
        excite = values.squeeze_excite(channels, SQUEEZED, (1, 1))
        activations = {"activation": self.activation, "gate": self.gate}
        if self.operator == "squeeze_excite":
            return {"x": x, **excite, **activations}
        convolution = {
            "w": values.normal(channels, 1, self.kernel, self.kernel, scale=1 / self.kernel),
            "stride": self.stride,
            "padding": (self.kernel // 2,) * 4,
        }
        if self.operator == "batch_norm_act":
            a = {"x": x, **self._batch_norm(values, channels, "", 0), "activation": self.activation}
            return a | {"keep": values.uniform(self.shape[0]), "residual": laid_out(torch.ones_like(x), self.layout)}
        if self.operator == "depthwise_conv_bn_act":
            a = {"x": x, **convolution, **self._batch_norm(values, channels, "", 0)}
            return a | {"activation": self.activation}
        expands = self.bn1 and self.operator == "mbconv"
        middle = 2 * channels if expands else channels
        if middle != channels:
            convolution["w"] = values.normal(middle, 1, self.kernel, self.kernel, scale=1 / self.kernel)
            excite = values.squeeze_excite(middle, SQUEEZED, (1, 1))
        a = {"x" if self.operator == "mbconv" else "u": x, **convolution, **activations}
        a |= self._batch_norm(values, middle, "2", 1)
        if self.bn1:
            a |= self._batch_norm(values, middle, "1", 0)
        if self.se or self.operator == "mbconv_core_unscaled":
            a |= excite
        if self.operator == "mbconv":
            a["w_project"] = values.normal(6, middle, 1, 1, scale=middle**-0.5)
        if expands:
            a["w_expand"] = values.normal(middle, channels, 1, 1, scale=channels**-0.5)
        return a

    def _batch_norm(self, values: Values, channels: int, number: str, which: int) -> Arguments:
        training = self.training[which] and self.operator != "mbconv_core_unscaled"
        a: Arguments = dict(values.batch_norm(channels, number))
        if not self.affine:
            a[f"gamma{number}"] = a[f"beta{number}"] = None
        if training and not self.running:
            a[f"mean{number}"] = a[f"var{number}"] = None
        return a | {f"training{number}": training, f"momentum{number}": 0.1, f"eps{number}": EPS}


def good_calls(*operators: str) -> st.SearchStrategy[Good]:
    """Calls that every operator accepts."""
    return st.builds(
        Good,
        operator=st.sampled_from(operators or tuple(OPERATORS)),
        shape=st.sampled_from(SHAPES),
        dtype=st.sampled_from(DTYPES),
        layout=st.sampled_from(LAYOUTS),
        training=st.tuples(st.booleans(), st.booleans()),
        affine=st.booleans(),
        running=st.booleans(),
        activation=st.sampled_from(ACTIVATIONS),
        gate=st.sampled_from(GATES),
        kernel=st.sampled_from((3, 5, 7)),
        stride=st.sampled_from((1, 2)),
        bn1=st.booleans(),
        se=st.booleans(),
        gradient=st.booleans(),
    )


def _along(t: Tensor, dimension: int) -> int:
    return dimension % t.dim() if t.dim() else 0


def _every_second(t: Tensor) -> Tensor:
    return torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0]


def _overlapping(t: Tensor) -> Tensor:
    """Of the same shape, on half the memory."""
    steps = [max(step // 2, 1) for step in t.contiguous().stride()]
    return t.contiguous().as_strided(t.shape, steps)


def _turned(t: Tensor) -> Tensor:
    """Of the same shape and values, with the strides of its transpose."""
    order = tuple(reversed(range(t.dim())))
    return t.permute(order).contiguous().permute(order)


def _far_steps(t: Tensor) -> Tensor:
    """Where an axis has one element, its stride may be anything."""
    dense = t.contiguous()
    steps = [10**15 if extent == 1 else step for extent, step in zip(dense.shape, dense.stride(), strict=True)]
    return dense.as_strided(dense.shape, steps)


def _with(value: float) -> Callable[[Tensor], Tensor]:
    def spoiled(t: Tensor) -> Tensor:
        t = t.clone(memory_format=torch.preserve_format)
        if t.numel():
            t.view(-1)[-1:].fill_(value) if t.is_contiguous() else t.select(0, 0).fill_(value)
        return t

    return spoiled


def _offset(t: Tensor) -> Tensor:
    memory = torch.empty(t.numel() + 1, dtype=t.dtype)
    return memory[1:].view(t.shape).copy_(t)


TENSOR_CHANGES: Mapping[str, Callable[[Tensor], Any]] = {
    "none": lambda t: None,
    "number": lambda t: 1.0,
    "string": lambda t: "tensor",
    "list": lambda t: t.tolist(),
    "array": lambda t: np.zeros(tuple(t.shape)),
    "scalar": lambda t: t.flatten()[:1].reshape(()),
    "one dimension more": lambda t: t[None],
    "one dimension more behind": lambda t: t[..., None],
    "one dimension less": lambda t: t[0],
    "flat": lambda t: t.flatten(),
    "longer": lambda t: torch.cat([t, t]),
    "longer in channels": lambda t: torch.cat([t, t], _along(t, 1)),
    "shorter": lambda t: t[:-1],
    "shorter at the end": lambda t: t[..., :-1],
    "swapped": lambda t: t.transpose(0, _along(t, 1)),
    "one pixel": lambda t: t[..., :1, :1] if t.dim() == 4 else t[:1],
    "one value": lambda t: t[:1, :, :1, :1] if t.dim() == 4 else t[:1],
    "empty": lambda t: t[:0],
    "empty channels": lambda t: t.narrow(_along(t, 1), 0, 0),
    "empty at the end": lambda t: t[..., :0],
    "int64": lambda t: t.long(),
    "int8": lambda t: t.to(torch.int8),
    "bool": lambda t: t > 0,
    "complex": lambda t: t.to(torch.complex64),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "float16": lambda t: t.half(),
    "bfloat16": lambda t: t.bfloat16(),
    "float32": lambda t: t.float(),
    "float64": lambda t: t.double(),
    "quantised": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.quint8),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "mkldnn": lambda t: t.float().to_mkldnn(),
    "nested": lambda t: torch.nested.nested_tensor([t[0], t[0]]),
    "every second": _every_second,
    "expanded": lambda t: t.flatten()[:1].reshape((1,) * t.dim()).expand(t.shape),
    "expanded first": lambda t: t[:1].expand(t.shape),
    "overlapping": _overlapping,
    "turned": _turned,
    "far steps": _far_steps,
    "offset": _offset,
    "requires grad": lambda t: t.clone().requires_grad_(),
    "NaN": _with(torch.nan),
    "inf": _with(torch.inf),
    "-inf": _with(-torch.inf),
    "zeros": torch.zeros_like,
    "tiny": lambda t: torch.full_like(t, 1e-42),
    "huge": lambda t: torch.full_like(t, 6e4),
}
"""What is done to a tensor."""

NUMBERS: tuple[Any, ...] = (-1, -1e-9, 0, 0.0, 1, 1.0, 2.5, 1e300, -1e300, float("inf"), float("-inf"), float("nan"))
STRANGE: tuple[Any, ...] = (None, "1", [], (1,), {}, object, 1j, True, torch.tensor(1.0), np.float32(0.5))
SETTING_CHANGES: Mapping[str, tuple[Any, ...]] = {
    "eps": NUMBERS + STRANGE,
    "momentum": NUMBERS + STRANGE,
    "training": (None, 0, 1, "yes", True, False, torch.tensor(True), []),
    "stride": (0, -1, 1, 2, 3, 2**40, 2**70, 1.0, 1.5, None, (1, 1), "2", [], np.int64(2), float("nan")),
    "padding": (
        *(0, 1, 2, 3, -1, 7, 2**40, 2**70, 1.0, None, "same", "zero", (), (1,), (1, 1), (1, 1, 1, 1, 1)),
        *((0, 0, 0, 0), (0, 2, 1, 0), (-1, 1, 1, 1), (1, 1, 1, 1.0), (None,) * 4, [1, 1, 1, 1], {}, np.ones(4)),
    ),
    "activation": ("identity", "relu6", "SiLU", "sigmoid", "", None, 3, [], b"silu", object),
    "gate": ("hardsigmoid", "silu", "", None, 5, [], {}),
    "bn1": (None, (), "bn", torch.nn.BatchNorm2d(8), torch.zeros(8)),
    "bn2": (None, (), "bn", torch.nn.BatchNorm2d(8), torch.zeros(8)),
    "se": (None, (), "se", (torch.zeros(1),) * 4),
}
"""What a setting may become: some of it good."""

Change = tuple[str, Any]
"""An argument and what becomes of it: a key of TENSOR_CHANGES or a value."""


def changes_of(good: Good) -> st.SearchStrategy[list[Change]]:
    """One or two changes of the arguments of ``good``."""
    arguments = good.arguments()
    choices: list[st.SearchStrategy[Change]] = []
    for name, value in arguments.items():
        setting = name.rstrip("12")
        if isinstance(value, Tensor):
            choices.append(st.tuples(st.just(name), st.sampled_from(tuple(TENSOR_CHANGES))))
        elif setting in SETTING_CHANGES:
            choices.append(st.tuples(st.just(name), st.sampled_from(SETTING_CHANGES[setting])))
    for name in OPERATORS[good.operator].names:
        if name in SETTING_CHANGES:
            choices.append(st.tuples(st.just(name), st.sampled_from(SETTING_CHANGES[name])))
    return st.lists(st.one_of(choices), min_size=1, max_size=2, unique_by=lambda change: change[0])


def changed(arguments: Arguments, changes: list[Change]) -> Arguments:
    """``arguments`` with ``changes`` in them; one that does not apply to a tensor leaves it as it is."""
    result = dict(arguments)
    for name, change in changes:
        value = arguments.get(name)
        result[name] = _changed(value, change) if isinstance(value, Tensor) else change
    return result


def _changed(t: Tensor, change: str) -> Any:
    try:
        return TENSOR_CHANGES[change](t.detach()).requires_grad_(t.requires_grad)
    except (RuntimeError, IndexError, AttributeError):
        # PyTorch itself has no such tensor, or what came is none.
        try:
            return TENSOR_CHANGES[change](t.detach())
        except (RuntimeError, IndexError):
            return t
