"""Every operator on the hardware that is here, checked against its definition in float64, and timed."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, product
from typing import Any, NamedTuple

import torch
from torch import Tensor

import effnet_kernels as ek
from effnet.doctor.machine import backends_of
from effnet.doctor.timing import median_ms
from effnet.doctor.workload import OPERATORS, QUICK_SHAPES, SHAPES, BlockShape, Tensors
from effnet_kernels.backend import requested_backend

GPU_BATCH, CPU_BATCH = 32, 2
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
RUNNING_STATISTICS = ("mean", "var", "mean1", "var1", "mean2", "var2")


class Bounds(NamedTuple):
    """The largest ‖actual − expected‖ / ‖expected‖ that passes, of what forward leaves and of the gradients."""

    forward: float
    gradient: float


BOUNDS: Mapping[torch.dtype, Bounds] = {
    torch.float32: Bounds(forward=1e-5, gradient=1e-4),
    torch.float16: Bounds(forward=2e-3, gradient=4e-3),
    torch.bfloat16: Bounds(forward=1.5e-2, gradient=3e-2),
}
"""By the dtype of the activations.

float32 (eps 1.2e-7): 80 eps and 800 eps, several times what sums over 10^6 values in any order leave; a wrong term is
off by 10^-2 or more. Half types: 2 eps and 4 eps, since y, the output, and BN1's gradient on its way are each rounded.
"""


@dataclass(frozen=True)
class Check:
    """One row to come: an operator at a shape, and what runs it on what."""

    operator: str
    shape: BlockShape
    device: torch.device
    dtype: torch.dtype
    layout: str
    backend: str
    training: bool

    @property
    def batch(self) -> int:
        return GPU_BATCH if self.device.type == "cuda" else CPU_BATCH

    @property
    def label(self) -> str:
        """N×channels@side, and kernel and stride where there is a convolution."""
        convolution = "w" in OPERATORS[self.operator].tensors(self.shape, self.batch)
        return f"{self.batch}×{self.shape if convolution else self.shape.image}"

    @property
    def values(self) -> tuple[str, BlockShape, torch.device, torch.dtype]:
        """Checks that agree in these see the same numbers, and share one evaluation of the definition."""
        return self.operator, self.shape, self.device, self.dtype


@dataclass(frozen=True)
class Row:
    """What a check found. None is what was not computed: gradients in inference, all that follows an exception.

    Attributes:
        mode: ``training``, with gradients, or ``inference``, without.
        shape: as :attr:`Check.label` writes it.
        forward_error: of the output and the running statistics, ‖actual − expected‖ / ‖expected‖, the worst tensor's.
        gradient_error: of the gradients, likewise.
        forward_ms: median time of a forward call, in training with what it saves.
        forward_backward_ms: median time of forward and backward together.
        forward_gbs: bandwidth in 10^9 bytes per second; above the memory's where the tensors stay in a cache.
        forward_backward_gbs: likewise.
        failure: why the row is not well: an error above the bounds, or the exception.
    """

    operator: str
    backend: str
    device: str
    dtype: str
    layout: str
    shape: str
    mode: str
    forward_error: float | None = None
    gradient_error: float | None = None
    forward_ms: float | None = None
    forward_backward_ms: float | None = None
    forward_gbs: float | None = None
    forward_backward_gbs: float | None = None
    failure: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing was raised and every error is within the bounds."""
        return self.failure is None


def plan(devices: Sequence[torch.device], *, quick: bool = False) -> list[Check]:
    """Every check on ``devices``; ``quick`` takes fewer shapes."""
    return [
        Check(operator, shape, device, dtype, layout, backend, training)
        for device in devices
        for operator, shape, dtype in product(OPERATORS, QUICK_SHAPES if quick else SHAPES, DTYPES[device.type])
        for backend, layout, training in product(backends_of(device), LAYOUTS, (True, False))
        # The reference rounds every intermediate result to half types; the bounds are not made for that.
        if backend != "reference" or dtype == torch.float32
    ]


def run(checks: Sequence[Check]) -> Iterator[Row]:
    """The rows of ``checks``, one by one. The process's backend is as it was whenever a row is handed out."""
    for _, group in groupby(checks, key=lambda check: check.values):
        problem = None
        for check in group:
            problem = problem or _Problem(check)
            yield _run(check, problem)


class _Problem:
    """The numbers of a check, drawn when they are first needed, and what the definition makes of them."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self._expected: dict[bool, _Outcome] = {}

    @cached_property
    def tensors(self) -> Tensors:
        """Activations in the check's dtype, all else in float32, as mixed precision has it."""
        check = self.check
        generator = torch.Generator(check.device).manual_seed(0)
        shapes = OPERATORS[check.operator].tensors(check.shape, check.batch)
        drawn = {name: draw(name, shape, generator) for name, shape in shapes.items()}
        return {name: t.to(check.dtype) if t.dim() == 4 and name != "w" else t for name, t in drawn.items()}

    @cached_property
    def grad(self) -> Tensor:
        """The gradient of the output, different for every element."""
        generator = torch.Generator(self.check.device).manual_seed(1)
        return draw("grad", tuple(self.expected(False).forward["out"].shape), generator).to(self.check.dtype)

    def expected(self, training: bool) -> "_Outcome":
        """The definition in float64."""
        if training not in self._expected:
            operator, shape = OPERATORS[self.check.operator], self.check.shape
            self._expected[training] = _outcome(
                lambda t: operator.define(t, shape, training),
                {name: t.double() for name, t in self.tensors.items()},
                self.grad.double() if training else None,
            )
        return self._expected[training]


class _Outcome(NamedTuple):
    forward: Tensors
    gradients: Tensors


def draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Scales and variances about 1, weights that keep the size of what they sum, and unit variance elsewhere."""
    if name.startswith(("gamma", "var")):
        return torch.rand(shape, generator=generator, device=generator.device) + 0.5
    normal = torch.randn(shape, generator=generator, device=generator.device)
    return normal / math.prod(shape[1:]) ** 0.5 if name.startswith("w") else normal


def _leaves(tensors: Tensors, gradient: bool) -> Tensors:
    return {
        name: t.detach().clone() if name in RUNNING_STATISTICS else t.detach().requires_grad_(gradient)
        for name, t in tensors.items()
    }


def _wanted(leaves: Tensors) -> list[Tensor]:
    return [t for t in leaves.values() if t.requires_grad]


def _outcome(function: Callable[[Tensors], Tensor], tensors: Tensors, grad: Tensor | None) -> _Outcome:
    leaves = _leaves(tensors, gradient=grad is not None)
    with torch.set_grad_enabled(grad is not None):
        out = function(leaves)
    names = [name for name, t in leaves.items() if t.requires_grad]
    gradients = () if grad is None else torch.autograd.grad(out, _wanted(leaves), grad)
    statistics_left = {name: t for name, t in leaves.items() if name in RUNNING_STATISTICS}
    return _Outcome({"out": out.detach(), **statistics_left}, dict(zip(names, gradients, strict=True)))


def _run(check: Check, problem: _Problem) -> Row:
    mode = "training" if check.training else "inference"
    dtype = str(check.dtype).removeprefix("torch.")
    row = Row(check.operator, check.backend, str(check.device), dtype, check.layout, check.label, mode)
    before = requested_backend()
    try:
        ek.set_backend(check.backend)
        return replace(row, **_measure(check, problem))
    # Whatever it is, the other rows still say something.
    except Exception as error:
        return replace(row, failure=f"{type(error).__name__}: {error}")
    finally:
        ek.set_backend(before)


def _measure(check: Check, problem: _Problem) -> dict[str, Any]:
    """The columns of ``check`` that are computed."""
    operator, training = OPERATORS[check.operator], check.training
    expected = problem.expected(training)
    layout = LAYOUTS[check.layout]
    tensors = {
        name: t.contiguous(memory_format=layout) if t.dim() == 4 and name != "w" else t
        for name, t in problem.tensors.items()
    }
    grad = problem.grad.contiguous(memory_format=layout) if training else None

    def call(t: Tensors) -> Tensor:
        return operator.call(t, check.shape, training)

    actual = _outcome(call, tensors, grad)
    bounds = BOUNDS[check.dtype]
    forward_error, forward_failure = _compare(actual.forward, expected.forward, bounds.forward)
    leaves = _leaves(tensors, gradient=training)
    wanted = _wanted(leaves)
    traffic = operator.traffic(check.shape, check.batch, training)
    bytes_per_ms = 1e-6 * check.dtype.itemsize
    with torch.set_grad_enabled(training):
        forward_ms = median_ms(lambda: call(leaves), check.device)
    columns = {
        "forward_error": forward_error,
        "forward_ms": forward_ms,
        "forward_gbs": traffic.forward * bytes_per_ms / forward_ms,
        "failure": forward_failure,
    }
    if grad is None:
        return columns
    gradient_error, gradient_failure = _compare(actual.gradients, expected.gradients, bounds.gradient, "gradient of ")
    both_ms = median_ms(lambda: torch.autograd.grad(call(leaves), wanted, grad), check.device)
    return columns | {
        "gradient_error": gradient_error,
        "forward_backward_ms": both_ms,
        "forward_backward_gbs": sum(traffic) * bytes_per_ms / both_ms,
        "failure": forward_failure or gradient_failure,
    }


def _compare(actual: Tensors, expected: Tensors, bound: float, prefix: str = "") -> tuple[float, str | None]:
    """The worst tensor's relative error, infinite for a NaN, and what is wrong with it, or None."""
    worst, worst_name = 0.0, ""
    for name, target in expected.items():
        if actual[name].shape != target.shape:
            got, wanted = tuple(actual[name].shape), tuple(target.shape)
            return math.inf, f"{prefix}{name}: shape {got}, expected {wanted}"
        error = relative_error(actual[name], target)
        if error > worst:
            worst, worst_name = error, name
    return worst, None if worst <= bound else f"{prefix}{worst_name}: relative error {worst:.1e} is over {bound:.1e}"


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in float64; infinite where a zero is missed and where there is a NaN."""
    error = float((actual.detach().double() - expected).norm())
    size = float(expected.norm())
    if error == 0:
        return 0.0
    return error / size if size and not math.isnan(error / size) else math.inf
