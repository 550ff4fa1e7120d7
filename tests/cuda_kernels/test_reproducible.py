"""The same bits whatever order the threads and blocks run in."""

from types import ModuleType

import pytest
import torch

from operators.axes import LAYOUTS
from operators.cases import CASES, Case
from operators.parity import check_identical, evaluate
from operators.sampling import label
from operators.test_reproducible import test_a_sample_does_not_depend_on_its_batch  # noqa: F401

SEEDS = (1, 2)


def split_case(operator: str, layout: str, dtype: torch.dtype) -> Case:
    """Large enough that it is cut along every axis, into pieces that do not divide it."""
    options = {
        "batch_norm_act": {"keep": True, "residual": True},
        "depthwise_conv_bn_act": {"kernel": 5, "stride": 1},
        "squeeze_excite": {"squeezed": 10},
        "mbconv_core": {"kernel": 3, "stride": 2, "squeezed": 10},
    }[operator]
    return CASES[operator]((3, 41, 23, 37), layout=layout, dtype=dtype, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=label)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", CASES)
def test_any_order(operator: str, layout: str, dtype: torch.dtype, runtime: ModuleType) -> None:
    case = split_case(operator, layout, dtype)
    expected = evaluate(case.call, case.tensors)
    for seed in SEEDS:
        runtime.seed(seed)
        check_identical(evaluate(case.call, case.tensors), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", ["depthwise_conv_bn_act", "mbconv_core"])
def test_any_order_in_inference(operator: str, layout: str, runtime: ModuleType) -> None:
    frozen = {"bn1": "frozen", "bn2": "frozen"} if operator == "mbconv_core" else {"training": False}
    for kernel, stride in ((7, 1), (3, 2)):
        case = CASES[operator]((3, 41, 23, 37), layout=layout, kernel=kernel, stride=stride, **frozen)
        expected = evaluate(case.call, case.tensors, gradient=False)
        for seed in SEEDS:
            runtime.seed(seed)
            check_identical(evaluate(case.call, case.tensors, gradient=False), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_any_order_over_several_tiles(stride: int, kernel: int, layout: str, runtime: ModuleType) -> None:
    """Rows wider than a block, whose tiles overlap in what they read."""
    case = CASES["depthwise_conv_bn_act"]((1, 9, 5, 149), kernel=kernel, stride=stride, layout=layout)
    expected = evaluate(case.call, case.tensors)
    for seed in SEEDS:
        runtime.seed(seed)
        check_identical(evaluate(case.call, case.tensors), expected)
