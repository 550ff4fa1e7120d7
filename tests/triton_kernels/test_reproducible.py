"""The same bits whatever order the programs run in, and no 32-bit sum that overflows."""

import pytest
import torch

from cuda_kernels.test_reproducible import split_case
from operators.axes import LAYOUTS
from operators.cases import CASES
from operators.parity import check_identical, evaluate
from operators.test_reproducible import test_a_sample_does_not_depend_on_its_batch  # noqa: F401
from triton_kernels.interpreter import quick, shuffled


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", CASES)
def test_any_order(operator: str, layout: str) -> None:
    case = split_case(operator, layout, torch.float32)
    expected = evaluate(case.call, case.tensors)
    with shuffled(1):
        check_identical(evaluate(case.call, case.tensors), expected)


@pytest.mark.parametrize("operator", CASES)
def test_nothing_overflows(operator: str) -> None:
    """The interpreter stops where a sum or product of 32-bit integers leaves their range."""
    case = split_case(operator, "nchw", torch.float32)
    with quick(overflow_checks=True):
        evaluate(case.call, case.tensors)
