"""Parity: a case through the operator and through its definition in float64, compared tensor by tensor."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from effnet_kernels.backend import requested_backend
from effnet_kernels.tensors import memory_format
from operators.cases import DIFFERENTIABLE, RUNNING_STATISTICS, Case, Stored, Tensors
from tolerances import TOLERANCES, assert_close

Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Outcome:
    """What a call leaves behind."""

    out: Tensor
    gradients: dict[str, Tensor]
    statistics: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """Everything, by name."""
        return {"out": self.out, **{f"d{name}": g for name, g in self.gradients.items()}, **self.statistics}

    def on(self, device: torch.device) -> "Outcome":
        """The same on ``device``."""

        def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: t.to(device) for name, t in tensors.items()}

        return Outcome(self.out.to(device), moved(self.gradients), moved(self.statistics))


def weighted_sum(out: Tensor) -> Tensor:
    """A loss whose gradient is dense, in the layout of ``out``, and different for every element."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.device, out.dtype)
    return (out * weights.contiguous(memory_format=memory_format(out))).sum()


def evaluate(
    function: Callable[[Tensors], Tensor], tensors: Tensors, *, gradient: bool = True, loss: Loss = weighted_sum
) -> Outcome:
    """Run ``function`` on ``tensors``, whose running statistics are copied first, and backward from ``loss``."""
    leaves = {
        name: t.detach().clone()
        if name in RUNNING_STATISTICS
        else t.detach().requires_grad_(gradient and name in DIFFERENTIABLE)
        for name, t in tensors.items()
    }
    with torch.set_grad_enabled(gradient):
        out = function(leaves)
    wanted = [name for name, t in leaves.items() if t.requires_grad]
    # Not .backward(): a leaf's .grad would be copied into the leaf's layout, and hide the operator's.
    gradients = (
        dict(zip(wanted, torch.autograd.grad(loss(out), [leaves[name] for name in wanted]), strict=True))
        if wanted
        else {}
    )
    return Outcome(out.detach(), gradients, {name: leaves[name] for name in RUNNING_STATISTICS if name in leaves})


def in_float64(tensors: Tensors) -> Tensors:
    return {name: t.detach().double() for name, t in tensors.items()}


def defined(case: Case, *, gradient: bool = True, loss: Loss = weighted_sum) -> Outcome:
    """What the case should leave behind: its definition in float64 on the same values.

    What the backend writes to memory passes through the activations' dtype: y, which is kept for backward, and in
    Triton the two tensors that a program cannot recompute for every tap.
    """
    dtype = case.tensors["x"].dtype
    dtypes = Stored(y=dtype, u=dtype) if gradient else Stored()
    if requested_backend() == "triton":
        dtypes = dtypes._replace(a=dtype, dy=dtype)
    # The loss weights are rounded to the activations' dtype before they are widened, as the operator's gradient is.
    x = case.tensors["x"]

    def rounded_loss(out: Tensor) -> Tensor:
        narrow = out.detach().to(x.dtype).contiguous(memory_format=memory_format(x)).requires_grad_()
        (weights,) = torch.autograd.grad(loss(narrow), narrow)
        return (out * weights.double()).sum()

    return evaluate(lambda t: case.define(t, dtypes), in_float64(case.tensors), gradient=gradient, loss=rounded_loss)


def check_parity(
    case: Case, *, gradient: bool = True, loss: Loss = weighted_sum, device: torch.device | None = None
) -> None:
    """The operator equals its definition, keeps layout, dtypes and shapes, and leaves its inputs alone.

    The operator runs on ``device``, if there is one; the definition is evaluated where the case's tensors are.
    """
    placed = case if device is None else case.on(device)
    x = placed.tensors["x"]
    before = {name: t.clone() for name, t in placed.tensors.items()}
    actual = evaluate(placed.call, placed.tensors, gradient=gradient, loss=loss)
    for name, t in placed.tensors.items():
        assert torch.equal(t, before[name]), f"{name} was written to"
    compare(actual.on(case.tensors["x"].device), defined(case, gradient=gradient, loss=loss), x)
    assert all(t.device == x.device for t in actual.tensors().values())

    assert actual.out.dtype == x.dtype
    layout = memory_format(x)
    assert actual.out.is_contiguous(memory_format=layout), f"out has strides {actual.out.stride()}"
    for name, g in actual.gradients.items():
        assert g.dtype == case.tensors[name].dtype, f"gradient of {name} is {g.dtype}"
    if gradient:
        assert actual.gradients["x"].is_contiguous(memory_format=layout)
    for name, t in actual.statistics.items():
        assert t.dtype == case.tensors[name].dtype


def compare(actual: Outcome, expected: Outcome, x: Tensor) -> None:
    """Every tensor of ``actual`` is within the bounds for the dtype of ``x``."""
    bounds = TOLERANCES[x.dtype]
    assert_close(actual.out, expected.out, bounds.forward, "out")
    assert actual.gradients.keys() == expected.gradients.keys()
    for name, g in expected.gradients.items():
        assert_close(actual.gradients[name], g, bounds.gradient, f"gradient of {name}")
    for name, t in expected.statistics.items():
        assert_close(actual.statistics[name], t, bounds.forward, name)


def check_identical(actual: Outcome, expected: Outcome) -> None:
    """The same bits, tensor by tensor."""
    assert actual.tensors().keys() == expected.tensors().keys()
    for name, t in expected.tensors().items():
        assert torch.equal(actual.tensors()[name], t), f"{name} differs"
