"""Bad arguments: an error that names the argument, before any work."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import effnet_kernels as ek

C, S = 8, 3


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "x": normal(2, C, 6, 5),
        "w": normal(C, 1, 3, 3),
        "gamma": torch.ones(C),
        "beta": torch.zeros(C),
        "mean": torch.zeros(C),
        "var": torch.ones(C),
        "w1": normal(S, C),
        "b1": normal(S),
        "w2": normal(C, S),
        "b2": normal(C),
    }


def batch_norm_act(changes: dict[str, Any]) -> Tensor:
    t: dict[str, Any] = tensors()
    wanted = ("x", "gamma", "beta", "mean", "var")
    return ek.batch_norm_act(**{**{name: t[name] for name in wanted}, **changes})


def depthwise_conv_bn_act(changes: dict[str, Any]) -> Tensor:
    t: dict[str, Any] = tensors()
    wanted = ("x", "w", "gamma", "beta", "mean", "var")
    return ek.depthwise_conv_bn_act(**{**{name: t[name] for name in wanted}, **changes})


def squeeze_excite(changes: dict[str, Any]) -> Tensor:
    t: dict[str, Any] = tensors()
    wanted = ("x", "w1", "b1", "w2", "b2")
    return ek.squeeze_excite(**{**{name: t[name] for name in wanted}, **changes})


def mbconv_core(changes: dict[str, Any]) -> Tensor:
    """Names with a 1 or 2 at the end change that BatchNorm's fields; w1, b1, w2 and b2 are squeeze-and-excite's."""
    t: dict[str, Any] = tensors()
    batch_norms = {}
    for suffix in ("1", "2"):
        fields = {name: changes.pop(name + suffix) for name in ek.BatchNorm._fields if name + suffix in changes}
        batch_norms[suffix] = ek.BatchNorm(t["gamma"], t["beta"], t["mean"], t["var"])._replace(**fields)
    excite = ek.SqueezeExcite(*(changes.pop(name, t[name]) for name in ek.SqueezeExcite._fields))
    u, w = changes.pop("u", t["x"]), changes.pop("w", t["w"])
    return ek.mbconv_core(u, w, batch_norms["2"], bn1=batch_norms["1"], se=excite, **changes)


X = torch.zeros(2, C, 6, 5)
ACTIVATIONS: list[tuple[Any, type[Exception], str]] = [
    (X[0], ValueError, "expected 4 dimensions"),
    (X[None], ValueError, "expected 4 dimensions"),
    (X.long(), TypeError, "expected float32, float16, bfloat16 or float64"),
    (X.to(torch.complex64), TypeError, "expected float32, float16, bfloat16 or float64"),
    (X.to_sparse(), TypeError, "expected a strided tensor"),
    (X[:, :0], ValueError, "expected C, H, W of at least 1"),
    (X[:, :, :0], ValueError, "expected C, H, W of at least 1"),
    (X.numpy(), TypeError, "expected a Tensor"),
    (None, TypeError, "expected a Tensor"),
]
CONVOLUTION: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"w": torch.zeros(C, 1, 4, 4)}, ValueError, "w: .*3×3, 5×5 or 7×7 kernel, got 4×4"),
    ({"w": torch.zeros(C, 1, 3, 5)}, ValueError, "w: .*got 3×5"),
    ({"w": torch.zeros(C, 2, 3, 3)}, ValueError, r"w: expected shape \(8, 1, 3, 3\), got \(8, 2, 3, 3\)"),
    ({"w": torch.zeros(C + 1, 1, 3, 3)}, ValueError, "w: expected shape"),
    ({"w": torch.zeros(C, 3, 3)}, ValueError, "w: expected shape"),
    ({"w": torch.zeros(C, 1, 3, 3).long()}, TypeError, "w: expected a floating dtype"),
    ({"w": torch.zeros(C, 1, 3, 3, device="meta")}, ValueError, "w: expected device cpu, got meta"),
    ({"w": None}, ValueError, "w: expected shape"),
    ({"stride": 3}, ValueError, "stride: expected 1 or 2, got 3"),
    ({"stride": 0}, ValueError, "stride: expected 1 or 2, got 0"),
    ({"stride": (2, 2)}, ValueError, "stride: expected 1 or 2"),
    ({"padding": 3}, ValueError, "padding: expected integers from 0 to 2, got 3"),
    ({"padding": -1}, ValueError, "padding: expected integers from 0 to 2, got -1"),
    ({"padding": (1, 1)}, ValueError, "padding: expected one number or"),
    ({"padding": (1, 1, 1, 3)}, ValueError, "padding: expected integers from 0 to 2"),
    ({"padding": 1.0}, ValueError, "padding: expected integers"),
    ({"padding": (0, 0, 0, 0), "w": torch.zeros(C, 1, 7, 7)}, ValueError, "x|u: H of 6 with padding 0 is smaller"),
    ({"padding": (1, 0, 0, 0), "w": torch.zeros(C, 1, 7, 7)}, ValueError, "x|u: W of 5 with padding 0 is smaller"),
]
BATCH_NORM: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"gamma": torch.ones(C + 1)}, ValueError, r"gamma: expected shape \(8,\), got \(9,\)"),
    ({"beta": torch.ones(C, 2)}, ValueError, "beta: expected shape"),
    ({"beta": torch.ones(C).int()}, TypeError, "beta: expected a floating dtype"),
    ({"gamma": torch.ones(C, device="meta")}, ValueError, "gamma: expected device cpu, got meta"),
    ({"mean": torch.ones(C - 1)}, ValueError, "mean: expected shape"),
    ({"var": torch.ones(C, device="meta")}, ValueError, "var: expected device cpu, got meta"),
    ({"mean": None}, ValueError, "mean, var: expected both or neither"),
    ({"var": None}, ValueError, "mean, var: expected both or neither"),
    ({"var": None, "mean": None, "training": False}, ValueError, "mean, var: expected running statistics"),
    ({"eps": -1e-5}, ValueError, "eps: expected a non-negative number"),
    ({"eps": float("nan")}, ValueError, "eps: expected a non-negative number"),
    ({"gamma": [1.0] * C}, TypeError, "gamma: expected a Tensor"),
]
EXCITE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"w1": torch.zeros(S, C + 1)}, ValueError, r"w1: expected shape \(3, 8\), got \(3, 9\)"),
    ({"w1": torch.zeros(C)}, ValueError, "w1: expected shape"),
    ({"w1": torch.zeros(0, C)}, ValueError, "w1: expected at least one squeezed channel"),
    ({"w1": torch.zeros(S, C, 3, 3)}, ValueError, "w1: expected shape"),
    ({"b1": torch.zeros(S + 1)}, ValueError, "b1: expected shape"),
    ({"w2": torch.zeros(S, C)}, ValueError, "w2: expected shape"),
    ({"b2": torch.zeros(C, device="meta")}, ValueError, "b2: expected device cpu, got meta"),
    ({"b2": torch.zeros(C).bool()}, TypeError, "b2: expected a floating dtype"),
    ({"gate": "silu"}, ValueError, "gate: expected one of sigmoid, hardsigmoid, got 'silu'"),
]
UNKNOWN_ACTIVATION = ({"activation": "gelu"}, ValueError, "activation: expected one of identity, .*, got 'gelu'")


def suffixed(rows: list[tuple[dict[str, Any], type[Exception], str]], suffix: str) -> list[Any]:
    """The rows about a BatchNorm of ``mbconv_core``, whose arguments carry a number."""
    names = "gamma|beta|mean|var|eps"

    def renamed(pattern: str) -> str:
        head, colon, tail = pattern.partition(":")
        return ", ".join(f"{name}{suffix}" if name in names else name for name in head.split(", ")) + colon + tail

    return [({f"{k}{suffix}": v for k, v in changes.items()}, error, renamed(p)) for changes, error, p in rows]


ROWS: list[tuple[Callable[[dict[str, Any]], Tensor], dict[str, Any], type[Exception], str]] = [
    *[(batch_norm_act, {"x": x}, error, f"x: {pattern}") for x, error, pattern in ACTIVATIONS],
    *[(depthwise_conv_bn_act, {"x": x}, error, f"x: {pattern}") for x, error, pattern in ACTIVATIONS],
    *[(squeeze_excite, {"x": x}, error, f"x: {pattern}") for x, error, pattern in ACTIVATIONS],
    *[(mbconv_core, {"u": x}, error, f"u: {pattern}") for x, error, pattern in ACTIVATIONS],
    *[(operator, *row) for operator in (depthwise_conv_bn_act, mbconv_core) for row in CONVOLUTION],
    *[(operator, *row) for operator in (batch_norm_act, depthwise_conv_bn_act) for row in BATCH_NORM],
    *[(mbconv_core, *row) for suffix in ("1", "2") for row in suffixed(BATCH_NORM, suffix)],
    *[(operator, *row) for operator in (squeeze_excite, mbconv_core) for row in EXCITE],
    *[
        (operator, *UNKNOWN_ACTIVATION)
        for operator in (batch_norm_act, depthwise_conv_bn_act, squeeze_excite, mbconv_core)
    ],
    (batch_norm_act, {"keep": torch.ones(3)}, ValueError, r"keep: expected shape \(2,\), got \(3,\)"),
    (batch_norm_act, {"keep": torch.ones(2).bool()}, TypeError, "keep: expected a floating dtype"),
    (batch_norm_act, {"keep": torch.ones(2, device="meta")}, ValueError, "keep: expected device cpu"),
    (batch_norm_act, {"residual": X[:1]}, ValueError, "residual: expected the shape of x"),
    (batch_norm_act, {"residual": X.half()}, TypeError, "residual: expected the dtype of x"),
    (batch_norm_act, {"residual": X.to("meta")}, ValueError, "residual: expected device cpu, got meta"),
]


def name_of(row: tuple[Callable[..., Tensor], dict[str, Any], type[Exception], str]) -> str:
    operator, changes, _, _ = row
    values = (getattr(v, "shape", v) for v in changes.values())
    return f"{operator.__name__}-{'-'.join(f'{k}={v}' for k, v in zip(changes, values, strict=True))}"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_errors_name_the_argument(
    row: tuple[Callable[[dict[str, Any]], Tensor], dict[str, Any], type[Exception], str], backend: str
) -> None:
    operator, changes, error, pattern = row
    ek.set_backend(backend)
    with pytest.raises(error, match=f"^({pattern})"):
        operator(dict(changes))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("bad", [{"b2": torch.zeros(C + 1)}, {"gamma2": torch.zeros(C + 1)}, {"gate": "none"}])
def test_errors_come_before_any_work(bad: dict[str, Any], backend: str) -> None:
    """What is wrong with the last part is found before the first part has moved its running statistics."""
    ek.set_backend(backend)
    mean, var = torch.zeros(C), torch.ones(C)
    with pytest.raises(ValueError, match=r"^(b2|gamma2|gate): "):
        mbconv_core({"mean1": mean, "var1": var, **bad})
    assert torch.equal(mean, torch.zeros(C)) and torch.equal(var, torch.ones(C))


@pytest.mark.parametrize("operator", [batch_norm_act, depthwise_conv_bn_act, squeeze_excite, mbconv_core])
def test_the_unchanged_arguments_are_good(operator: Callable[[dict[str, Any]], Tensor]) -> None:
    assert operator({}).isfinite().all()


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"set_backend: expected one of auto, .*, got 'opencl'"):
        ek.set_backend("opencl")
