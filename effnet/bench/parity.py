"""Whether a side computes what the definition does: nobody is timed who does not.

Errors are ‖actual − expected‖ / scale in the 2-norm, expected from float64. A tensor's bound is :data:`SLACK` times
what PyTorch's separate calls are off by in the case's own precision, in either layout, and never under the bounds that
``effnet doctor`` has for one operator: a deep network loses digits that no implementation can keep, and a wrong term
is off by far more.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from effnet.bench.cases import Case
from effnet.bench.problem import Outcome
from effnet.doctor.checks import BOUNDS

SLACK = 4.0
LARGEST_BOUND = 0.5
"""A tensor of which PyTorch's own calls leave no more than this, twice over, says nothing and is not compared."""
SMALL = 1e-3
"""Beside its likes: a gradient that vanishes by cancellation, as that of a shift that the next BatchNorm removes."""


class Parity(NamedTuple):
    """The tensor that is worst beside its bound. ``problem`` is None where every tensor is within its bound."""

    tensor: str
    error: float
    bound: float
    problem: str | None


class Judge:
    """Holds what sides leave against ``expected``, within bounds that come from what ``eager`` sides left."""

    def __init__(self, case: Case, expected: Outcome, eager: Sequence[Outcome]) -> None:
        self._expected = expected
        self._scales = _scales(expected)
        floors = BOUNDS[case.torch_dtype]
        self.bounds: dict[str, float] = {}
        for name in expected:
            off = max(self._error(name, outcome[name]) for outcome in eager)
            if 2 * off <= LARGEST_BOUND:
                floor = floors.gradient if _kind(name) == "gradient" else floors.forward
                self.bounds[name] = min(max(floor, SLACK * off), LARGEST_BOUND)

    def judge(self, actual: Outcome) -> Parity:
        """The worst tensor of ``actual``; one that is missing or has another size is a problem, too."""
        if "out" not in self.bounds:
            return Parity("out", math.inf, 0.0, "not comparable: PyTorch's own calls are off by as much as the output")
        found = [self._compare(name, actual.get(name)) for name in self.bounds]
        return max(found, key=lambda parity: parity.error / parity.bound)

    def _compare(self, name: str, actual: Tensor | None) -> Parity:
        bound, expected = self.bounds[name], self._expected[name]
        if actual is None:
            return Parity(name, math.inf, bound, f"{name}: missing")
        if actual.numel() != expected.numel():
            shapes = f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
            return Parity(name, math.inf, bound, f"{name}: {shapes}")
        error = self._error(name, actual)
        problem = None if error <= bound else f"{name}: relative error {error:.1e} is over {bound:.1e}"
        return Parity(name, error, bound, problem)

    def _error(self, name: str, actual: Tensor) -> float:
        """Infinite for a NaN."""
        expected = self._expected[name]
        # Another library may keep a 1×1 convolution where a matrix is kept here.
        error = float((actual.detach().to(expected).reshape(expected.shape) - expected).norm()) / self._scales[name]
        return math.inf if math.isnan(error) else error


def _kind(name: str) -> str:
    return name if name == "out" else "gradient" if name.startswith("gradient") else "statistics"


def _scales(expected: Outcome) -> dict[str, float]:
    """The norm of every tensor, or where that is small what it would be with :data:`SMALL` of its kind's largest."""
    rms = {name: float(t.norm()) / math.sqrt(max(t.numel(), 1)) for name, t in expected.items()}
    largest = {kind: max(rms[n] for n in rms if _kind(n) == kind) for kind in map(_kind, rms)}
    tiny = 1e-300
    return {
        name: max(rms[name], SMALL * largest[_kind(name)], tiny) * math.sqrt(max(t.numel(), 1))
        for name, t in expected.items()
    }
