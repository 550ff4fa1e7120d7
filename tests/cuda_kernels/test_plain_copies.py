"""Plain copies to shared memory, which devices before sm_80 make, in place of those that run beside the computation."""

from types import ModuleType

import pytest
import torch

from operators.axes import LAYOUTS
from operators.cases import depthwise_conv_bn_act_case, mbconv_core_case
from operators.parity import check_identical, check_parity, evaluate
from operators.sampling import label


@pytest.fixture(autouse=True)
def before_sm_80(runtime: ModuleType) -> None:
    runtime.set_device(compute_capability_major=7, compute_capability_minor=5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=label)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_parity(kernel: int, stride: int, layout: str, dtype: torch.dtype) -> None:
    for shape in ((2, 17, 9, 11), (1, 24, 10, 70)):
        check_parity(depthwise_conv_bn_act_case(shape, kernel=kernel, stride=stride, layout=layout, dtype=dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits(layout: str, runtime: ModuleType) -> None:
    """How values come into shared memory changes none of them."""
    case = mbconv_core_case((2, 40, 15, 14), kernel=5, stride=2, layout=layout)
    expected = evaluate(case.call, case.tensors)
    runtime.set_device()
    check_identical(evaluate(case.call, case.tensors), expected)
