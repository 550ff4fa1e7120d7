"""Parameters and running statistics in dtypes of their own, and what is said of running statistics."""

import pytest
import torch

from operators.axes import LAYOUTS
from operators.cases import CASES, RUNNING_STATISTICS, Case
from operators.parity import defined, evaluate
from operators.sampling import label
from operators.test_running_statistics import (  # noqa: F401
    test_batch_norm_act_follows_batch_norm,
    test_cores_follow_batch_norm,
    test_evaluation_leaves_them,
    test_half_statistics,
    test_statistics_may_be_views,
    test_training_updates_with_and_without_gradient,
    test_update_happens_once_per_forward,
)
from tolerances import TOLERANCES, assert_close

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check(case: Case) -> None:
    """Each tensor within the bound of the coarser of its own dtype and the activations'."""
    x = case.tensors["x"]
    actual, expected = evaluate(case.call, case.tensors), defined(case)
    assert_close(actual.out, expected.out, TOLERANCES[x.dtype].forward, "out")
    for name, g in expected.gradients.items():
        dtype = case.tensors[name].dtype
        bound = max(TOLERANCES[x.dtype].gradient, TOLERANCES[dtype].gradient)
        assert_close(actual.gradients[name], g, bound, f"gradient of {name}")
        assert actual.gradients[name].dtype == dtype, name
    for name, t in expected.statistics.items():
        dtype = case.tensors[name].dtype
        assert_close(actual.statistics[name], t, max(TOLERANCES[x.dtype].forward, TOLERANCES[dtype].forward), name)
        assert actual.statistics[name].dtype == dtype, name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activations", [torch.float32, torch.float16, torch.bfloat16], ids=label)
@pytest.mark.parametrize("parameters", ["float64", "float32", "float16", "bfloat16", "mixed"])
@pytest.mark.parametrize("operator", CASES)
def test_dtypes(operator: str, parameters: str, activations: torch.dtype, layout: str) -> None:
    """All of them in one dtype, or each parameter in another than the one before."""
    case = CASES[operator]((2, 24, 7, 6), dtype=activations, layout=layout)
    names = [name for name in case.tensors if name != "x"]
    dtypes = {name: DTYPES[number % 4] for number, name in enumerate(names)}
    if parameters != "mixed":
        dtypes = dict.fromkeys(names, getattr(torch, parameters))
    check(case.with_tensors(**{name: case.tensors[name].to(dtype) for name, dtype in dtypes.items()}))


@pytest.mark.parametrize("dtype", DTYPES, ids="statistics_in_{}".format)
@pytest.mark.parametrize("operator", ["batch_norm_act", "depthwise_conv_bn_act", "mbconv_core"])
def test_statistics(operator: str, dtype: torch.dtype) -> None:
    """Only the running statistics are in ``dtype``: updated in training, read with frozen ones."""
    frozen = {"bn1": "frozen", "bn2": "frozen"} if operator == "mbconv_core" else {"training": False}
    for options in ({}, frozen):
        case = CASES[operator]((2, 24, 7, 6), **options)
        statistics = {name: case.tensors[name].to(dtype) for name in RUNNING_STATISTICS if name in case.tensors}
        check(case.with_tensors(**statistics))
