"""Whether a side computes what the definition does: nobody is timed who does not.

The bound on ‖actual − expected‖ / ‖expected‖ of a tensor, against float64, is :data:`SLACK` times what PyTorch's
separate calls are off by in the case's own precision, and never under the bounds that ``effnet doctor`` has for one
operator. A deep network's gradients lose digits that no implementation can keep; a wrong term is off by far more.
"""

from typing import NamedTuple

from effnet.bench.cases import Case
from effnet.bench.problem import Outcome
from effnet.doctor.checks import BOUNDS, relative_error

SLACK = 4.0
LARGEST_BOUND = 0.5
"""Above this the numbers say nothing: the definition itself has lost them, and the tensor is not compared."""


class Parity(NamedTuple):
    """The tensor that is worst beside its bound. ``problem`` is None where every tensor is within its bound."""

    tensor: str
    error: float
    bound: float
    problem: str | None


def bounds(case: Case, eager: Outcome, expected: Outcome) -> dict[str, float]:
    """The bound of every tensor, from what ``eager`` is off by; without those that cannot be compared."""
    floors = BOUNDS[case.torch_dtype]
    found = {}
    for name, target in expected.items():
        floor = floors.gradient if name.startswith("gradient") else floors.forward
        bound = max(floor, SLACK * relative_error(eager[name], target))
        if bound <= LARGEST_BOUND:
            found[name] = bound
    return found


def compare(actual: Outcome, expected: Outcome, allowed: dict[str, float]) -> Parity:
    """``actual`` held against ``expected``; a tensor that is missing or misshapen is a problem, too."""
    worst = Parity("", 0.0, 0.0, None if allowed else "no tensor can be compared: the definition lost all digits")
    ratio = -1.0
    for name, bound in allowed.items():
        got = actual.get(name)
        if got is None:
            return Parity(name, float("inf"), bound, f"{name}: missing")
        if got.numel() != expected[name].numel():
            shapes = f"shape {tuple(got.shape)}, expected {tuple(expected[name].shape)}"
            return Parity(name, float("inf"), bound, f"{name}: {shapes}")
        error = relative_error(got.reshape(expected[name].shape), expected[name])
        if error / bound > ratio:
            ratio, worst = error / bound, Parity(name, error, bound, None)
    if ratio > 1:
        message = f"{worst.tensor}: relative error {worst.error:.1e} is over {worst.bound:.1e}"
        return worst._replace(problem=message)
    return worst
