"""What an operator has to move and to compute, and what the machine can: the two axes of a roofline plot."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from effnet.bench.cases import Case
from effnet.doctor.timing import elapsed_ms
from effnet.doctor.workload import OPERATORS

COPY_ELEMENTS, REPEATS = 2**26, 7
MATRIX_SIDES = {"cpu": 1024, "cuda": 8192}

# Additions and multiplications for one element, an exponential counted as one.
_NORMALIZE, _ACTIVATE, _SCALE = 2, 4, 1
_BACKWARD = 3
"""A pointwise step's backward computes the forward's intermediate values again, its derivative and two sums."""


class Work(NamedTuple):
    """Of one step: the traffic that docs/design.md finds necessary, and operations."""

    bytes: int
    flops: int


class Roof(NamedTuple):
    """What the machine reaches: 10^9 bytes per second copying, 10^9 operations per second multiplying matrices."""

    gbs: float
    gflops: float


def work_of(case: Case) -> Work | None:
    """The work of an operator; of blocks and networks, whose convolutions are other libraries', None."""
    if case.kind != "operator":
        return None
    assert case.shape is not None
    traffic = OPERATORS[case.name].traffic(case.shape, case.batch, case.training)
    elements = sum(traffic) if case.training else traffic.forward
    return Work(elements * case.torch_dtype.itemsize, _flops(case))


def _flops(case: Case) -> int:
    assert case.shape is not None
    e_in, e_out = case.shape.elements(case.batch)
    norm = (_NORMALIZE + _ACTIVATE) * (1 + _BACKWARD * case.training)
    scale = 2 * _SCALE * (1 + _BACKWARD * case.training)
    # Backward: one convolution for the input's gradient, one for the weight's.
    convolution = 2 * case.shape.kernel**2 * (1 + 2 * case.training) * e_out
    if case.name == "batch_norm_act":
        return norm * e_in
    if case.name == "squeeze_excite":
        return scale * e_in
    if case.name == "depthwise_conv_bn_act":
        return convolution + norm * e_out
    first = norm * e_in if case.shape.expansion > 1 else 0
    return first + convolution + (norm + scale) * e_out


def measure_roof(device: torch.device) -> Roof:
    """In float32 and with the threads that are set: copying 256 MiB, and multiplying matrices."""
    side = MATRIX_SIDES[device.type]
    source = torch.ones(COPY_ELEMENTS, device=device)
    target = torch.empty_like(source)
    left = torch.ones(side, side, device=device)
    product = torch.empty_like(left)
    copy_ms = _best_ms(lambda: target.copy_(source), device)
    multiply_ms = _best_ms(lambda: torch.mm(left, left, out=product), device)
    return Roof(2 * source.nbytes / copy_ms / 1e6, 2 * side**3 / multiply_ms / 1e6)


def _best_ms(function: Callable[[], object], device: torch.device) -> float:
    function()
    return min(elapsed_ms(function, device) for _ in range(REPEATS))
