"""The same bits from run to run, whatever else the device does."""

import pytest
import torch

from operators.axes import LAYOUTS
from operators.cases import CASES
from operators.parity import check_identical, evaluate
from operators.sampling import label
from operators.test_reproducible import large_case


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=label)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", CASES)
def test_reruns(operator: str, layout: str, dtype: torch.dtype, device: torch.device) -> None:
    case = large_case(operator, layout, dtype).on(device)
    for gradient in (True, False):
        expected = evaluate(case.call, case.tensors, gradient=gradient)
        for _ in range(5):
            check_identical(evaluate(case.call, case.tensors, gradient=gradient), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", CASES)
def test_beside_other_work(operator: str, layout: str, device: torch.device) -> None:
    """Blocks come and go in another order where another stream keeps the multiprocessors busy."""
    case = large_case(operator, layout, torch.float32).on(device)
    expected = evaluate(case.call, case.tensors)
    other, load = torch.cuda.Stream(device), torch.randn(2048, 2048, device=device)
    torch.cuda.synchronize(device)
    for _ in range(3):
        with torch.cuda.stream(other):
            for _ in range(20):
                load = torch.sin(load @ load)
        check_identical(evaluate(case.call, case.tensors), expected)
    torch.cuda.synchronize(device)
