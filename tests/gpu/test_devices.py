"""Two devices: the tensors' device counts, not the current one."""

from collections.abc import Iterator

import pytest
import torch

from operators.axes import LAYOUTS
from operators.cases import CASES
from operators.parity import check_identical, check_parity, evaluate

SHAPE = (5, 41, 23, 22)


@pytest.fixture
def other(device: torch.device) -> Iterator[torch.device]:
    """A device that is not the current one, and is not afterwards either."""
    count = torch.cuda.device_count()
    if count < 2:
        pytest.skip(f"needs two CUDA devices, there is {count}")
    current = torch.cuda.current_device()
    yield torch.device("cuda", (current + 1) % count)
    assert torch.cuda.current_device() == current


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", CASES)
def test_tensors_elsewhere(operator: str, layout: str, other: torch.device) -> None:
    """Parity, with and without a gradient, and every result on the device of the inputs."""
    case = CASES[operator](SHAPE, layout=layout)
    for gradient in (True, False):
        check_parity(case, gradient=gradient, device=other)


@pytest.mark.parametrize("operator", CASES)
def test_both_in_turn(operator: str, device: torch.device, other: torch.device) -> None:
    """Nothing that is kept from a call on one device is used on the other."""
    case = CASES[operator](SHAPE)
    first, second = case.on(device), case.on(other)
    for _ in range(2):
        here, there = evaluate(first.call, first.tensors), evaluate(second.call, second.tensors)
        if torch.cuda.get_device_properties(device).name == torch.cuda.get_device_properties(other).name:
            check_identical(there.on(device), here)


@pytest.mark.parametrize("operator", CASES)
def test_parameters_on_the_current_device_are_refused(operator: str, device: torch.device, other: torch.device) -> None:
    case = CASES[operator](SHAPE).on(device)
    with pytest.raises(ValueError, match=f"expected device {other}, got {device}"):
        case.call({**case.tensors, "x": case.tensors["x"].to(other)})
