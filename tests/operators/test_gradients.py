"""Gradients against finite differences, in float64, and what is said where there is no gradient."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from operators.axes import LAYOUTS
from operators.cases import (
    CASES,
    CPU_CASES,
    DIFFERENTIABLE,
    RUNNING_STATISTICS,
    Case,
    batch_norm_act_case,
    depthwise_conv_bn_act_case,
    mbconv_case,
    mbconv_core_case,
    pointwise_conv_case,
    squeeze_excite_case,
)

DOUBLE = torch.float64


def check_gradients(case: Case) -> None:
    """Every differentiable input by central differences; twice, because the analytical gradient must not vary."""
    names = [name for name in DIFFERENTIABLE if name in case.tensors]

    def function(*inputs: Tensor) -> Tensor:
        statistics = {name: t.clone() for name, t in case.tensors.items() if name in RUNNING_STATISTICS}
        return case.call({**case.tensors, **statistics, **dict(zip(names, inputs, strict=True))})

    inputs = [case.tensors[name].detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-7, rtol=1e-5, nondet_tol=0.0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False], ids=("training", "frozen"))
@pytest.mark.parametrize("activation", ["identity", "relu", "relu6", "silu", "hardswish"])
def test_batch_norm_act(activation: str, training: bool, layout: str) -> None:
    check_gradients(
        batch_norm_act_case(
            (2, 3, 2, 3),
            dtype=DOUBLE,
            layout=layout,
            training=training,
            activation=activation,
            keep=layout == "nchw",
            residual=training,
        )
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False], ids=("training", "frozen"))
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(3, 1, (1, 1, 1, 1)), (3, 2, (0, 1, 0, 1)), (5, 2, (1, 2, 2, 0)), (7, 1, (3, 3, 3, 3))],
)
def test_depthwise_conv_bn_act(
    kernel: int, stride: int, padding: tuple[int, int, int, int], training: bool, layout: str
) -> None:
    check_gradients(
        depthwise_conv_bn_act_case(
            (2, 2, 4, 5), kernel=kernel, stride=stride, padding=padding, dtype=DOUBLE, layout=layout, training=training
        )
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gate", ["sigmoid", "hardsigmoid"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_squeeze_excite(activation: str, gate: str, layout: str) -> None:
    check_gradients(
        squeeze_excite_case((2, 3, 2, 3), squeezed=2, dtype=DOUBLE, layout=layout, activation=activation, gate=gate)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("se", ["convolution", None], ids=("se", "no_se"))
@pytest.mark.parametrize("bn2", ["training", "frozen"])
@pytest.mark.parametrize("bn1", ["training", "frozen", None])
def test_mbconv_core(bn1: str | None, bn2: str, se: str | None, layout: str) -> None:
    check_gradients(
        mbconv_core_case(
            (2, 2, 4, 5),
            stride=2,
            padding=(0, 1, 0, 1),
            squeezed=2,
            dtype=DOUBLE,
            layout=layout,
            bn1=bn1,
            bn2=bn2,
            se=se,
        )
    )


def test_pointwise_conv() -> None:
    check_gradients(pointwise_conv_case((2, 3, 4, 5), out_channels=4, dtype=DOUBLE))


@pytest.mark.parametrize("se", ["convolution", None], ids=("se", "no_se"))
@pytest.mark.parametrize("bn2", ["training", "frozen"])
@pytest.mark.parametrize(("expanded", "bn1"), [(5, "training"), (5, "frozen"), (None, "training")])
def test_mbconv(expanded: int | None, bn1: str, bn2: str, se: str | None) -> None:
    options = {"bn1": bn1, "bn2": bn2, "se": se, "stride": 2, "padding": (0, 1, 0, 1), "squeezed": 2}
    check_gradients(mbconv_case((2, 3, 4, 5), expanded=expanded, out_channels=2, dtype=DOUBLE, **options))


def alone(cases: Mapping[str, Callable[..., Case]]) -> list[tuple[str, str]]:
    """Every operator with every gradient that may be asked for."""
    return [(operator, name) for operator, make in cases.items() for name in DIFFERENTIABLE if name in make().tensors]


def check_one_gradient_alone(case: Case, only: str) -> None:
    def gradients(names: list[str]) -> dict[str, Tensor]:
        t = {name: v.clone() for name, v in case.tensors.items()}
        leaves = {name: t[name].requires_grad_() for name in names}
        out = case.call({**t, **leaves})
        weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
        return dict(zip(names, torch.autograd.grad(out, list(leaves.values()), weights), strict=True))

    every = [name for name in DIFFERENTIABLE if name in case.tensors]
    assert torch.equal(gradients([only])[only], gradients(every)[only])


@pytest.mark.parametrize(("operator", "only"), alone(CASES))
def test_one_gradient_alone(operator: str, only: str) -> None:
    """A gradient asked for alone is the one that comes among all: nothing is skipped with what is not needed."""
    check_one_gradient_alone(CASES[operator](), only)


@pytest.mark.parametrize(("operator", "only"), alone(CPU_CASES))
def test_one_gradient_alone_on_cpu(operator: str, only: str) -> None:
    check_one_gradient_alone(CPU_CASES[operator](), only)


def check_double_backward_is_refused(case: Case) -> None:
    x = case.tensors["x"].detach().requires_grad_()
    (dx,) = torch.autograd.grad(case.call({**case.tensors, "x": x}).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=rf"{case.name}_backward has no second derivative.*reference"):
        torch.autograd.grad(dx.sum(), x)


@pytest.mark.parametrize("operator", CASES)
def test_double_backward_is_refused(operator: str) -> None:
    check_double_backward_is_refused(CASES[operator]((2, 3, 4, 5)))


@pytest.mark.parametrize("operator", CPU_CASES)
def test_double_backward_is_refused_on_cpu(operator: str) -> None:
    check_double_backward_is_refused(CPU_CASES[operator]((2, 3, 4, 5)))


def test_keep_is_a_constant() -> None:
    case = batch_norm_act_case(keep=True)
    with pytest.raises(ValueError, match="keep: expected a constant"):
        case.call(case.with_tensors(keep=case.tensors["keep"].requires_grad_()).tensors)
