"""More than 2³¹ elements in a tensor: no index is 32 bits wide that should not be."""

import math

import pytest
import torch
from torch import Tensor

from effnet_kernels.tensors import memory_format
from gpu.steps import eager, grad_like
from operators.axes import LAYOUTS
from operators.cases import CASES
from tolerances import TOLERANCES, assert_close

BASE = (8, 32, 112, 112)
REPEATS = 669
ELEMENTS = REPEATS * math.prod(BASE)
assert ELEMENTS > 2**31

DTYPE = torch.float16
# u, y, out, both gradients, and what the comparison takes in float64, piece by piece.
NEEDED = 5 * ELEMENTS * DTYPE.itemsize + 4 * 2**30
PIECE = 16


def repeated(x: Tensor) -> Tensor:
    """``x`` over and over along its batch, in its layout."""
    shape = (REPEATS * x.shape[0], *x.shape[1:])
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    out.unflatten(0, (REPEATS, x.shape[0])).copy_(x)
    return out


def assert_repeats(actual: Tensor, expected: Tensor, bound: float, what: str) -> None:
    """Every repetition in ``actual`` is ``expected``."""
    for number, piece in enumerate(actual.unflatten(0, (REPEATS, expected.shape[0])).split(PIECE)):
        assert_close(piece, expected.expand_as(piece), bound, f"{what}, repetitions from {number * PIECE}")


@pytest.fixture(autouse=True)
def room(device: torch.device) -> None:
    """Skip where the device has not the memory."""
    torch.cuda.empty_cache()
    free, _total = torch.cuda.mem_get_info(device)
    if free < NEEDED:
        pytest.skip(f"needs {NEEDED / 2**30:.0f} GiB of free memory, there are {free / 2**30:.0f}")


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", CASES)
def test_more_than_32_bits(operator: str, layout: str, device: torch.device) -> None:
    """A batch repeated has the statistics of the batch: the same results, and parameters' gradients that add up."""
    small = CASES[operator](BASE, layout=layout, dtype=DTYPE).on(device)
    with torch.no_grad():
        grad = grad_like(small.call(dict(small.tensors)))
    expected = eager(small, grad)
    huge = small.with_tensors(x=repeated(small.tensors["x"]))
    leaves = {name: t.detach().requires_grad_(name in expected.gradients) for name, t in huge.tensors.items()}
    statistics = {name: small.tensors[name].clone() for name in expected.statistics}
    out = huge.call({**leaves, **statistics})
    assert out.numel() == ELEMENTS
    names = list(expected.gradients)
    gradients = dict(
        zip(names, torch.autograd.grad(out, [leaves[name] for name in names], repeated(grad)), strict=True)
    )
    bounds = TOLERANCES[DTYPE]
    assert_repeats(out.detach(), expected.out, bounds.forward, "out")
    assert_repeats(gradients.pop("x"), expected.gradients["x"], bounds.gradient, "gradient of x")
    for name, g in gradients.items():
        assert_close(g / REPEATS, expected.gradients[name], bounds.gradient, f"gradient of {name}")
    for name, t in expected.statistics.items():
        assert_close(statistics[name], t, bounds.forward, name)
