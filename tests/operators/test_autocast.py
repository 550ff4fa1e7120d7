"""Autocast: activations follow it; γ, β, weights and statistics stay as they are."""

import pytest
import torch

import effnet_kernels as ek
from operators.cases import CASES, Case
from operators.parity import compare, defined, evaluate
from operators.sampling import label
from tolerances import TOLERANCES, assert_close


def make(operator: str, dtype: torch.dtype = torch.float32) -> Case:
    options = {"keep": True, "residual": True} if operator == "batch_norm_act" else {}
    return CASES[operator]((2, 17, 9, 8), dtype=dtype, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=label)
@pytest.mark.parametrize("operator", CASES)
def test_activations_follow(operator: str, dtype: torch.dtype) -> None:
    """As if the activations had been in that dtype, except that their gradient comes back in float32."""
    case = make(operator)
    cast = {name: t.to(dtype) for name, t in case.tensors.items() if name in ("x", "residual")}
    expected = defined(case.with_tensors(**cast))
    with torch.autocast("cpu", dtype):
        actual = evaluate(case.call, case.tensors)
    assert actual.out.dtype == dtype
    compare(actual, expected, cast["x"])
    for name, t in {**actual.gradients, **actual.statistics}.items():
        assert t.dtype == torch.float32, name


@pytest.mark.parametrize("operator", CASES)
def test_float64_is_left_alone(operator: str) -> None:
    case = make(operator, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        actual = evaluate(case.call, case.tensors)
    assert actual.out.dtype == torch.float64
    compare(actual, defined(case), case.tensors["x"])


@pytest.mark.parametrize("operator", CASES)
def test_the_reference_backend_agrees(operator: str) -> None:
    """The same dtypes, and the same values to what bfloat16 holds, whichever backend serves."""
    case = make(operator)
    with torch.autocast("cpu", torch.bfloat16):
        actual = evaluate(case.call, case.tensors)
        ek.set_backend("reference")
        expected = evaluate(case.call, case.tensors)
    assert expected.out.dtype == torch.bfloat16
    bounds = TOLERANCES[torch.bfloat16]
    assert_close(actual.out, expected.out, 2 * bounds.forward, "out")
    for name, t in expected.tensors().items():
        assert actual.tensors()[name].dtype == t.dtype, name
    for name, t in expected.statistics.items():
        assert_close(actual.statistics[name], t, bounds.forward, name)


@pytest.mark.parametrize("operator", CASES)
def test_disabled_autocast_changes_nothing(operator: str) -> None:
    case = make(operator)
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert evaluate(case.call, case.tensors).out.dtype == torch.float32
