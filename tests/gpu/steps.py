"""A training step from a given gradient of the output: nothing but the operator and its backward runs in it."""

from collections.abc import Callable

import torch
from torch import Tensor

from effnet_kernels.tensors import memory_format
from operators.cases import DIFFERENTIABLE, RUNNING_STATISTICS, Case, Tensors
from operators.parity import Outcome


def leaves_of(case: Case) -> dict[str, Tensor]:
    """Copies of the case's tensors, which a step may update, and which require a gradient where there is one."""
    return {
        name: t.detach().clone(memory_format=torch.preserve_format).requires_grad_(name in DIFFERENTIABLE)
        for name, t in case.tensors.items()
    }


def refill(leaves: Tensors, case: Case) -> None:
    """Give ``leaves`` the values of ``case``, where they are."""
    with torch.no_grad():
        for name, t in leaves.items():
            t.copy_(case.tensors[name])


def grad_like(out: Tensor, seed: int = 1) -> Tensor:
    """A dense gradient of ``out`` in its layout, different for every element."""
    generator = torch.Generator(out.device).manual_seed(seed)
    values = torch.randn(out.shape, generator=generator, device=out.device)
    return values.to(out.dtype).contiguous(memory_format=memory_format(out))


def step(call: Callable[[Tensors], Tensor], leaves: Tensors, grad: Tensor) -> Outcome:
    """Forward and backward on ``leaves``, whose running statistics are updated."""
    out = call(leaves)
    wanted = [name for name, t in leaves.items() if t.requires_grad]
    gradients = torch.autograd.grad(out, [leaves[name] for name in wanted], grad)
    statistics = {name: t for name, t in leaves.items() if name in RUNNING_STATISTICS}
    return Outcome(out.detach(), dict(zip(wanted, gradients, strict=True)), statistics)


def eager(case: Case, grad: Tensor) -> Outcome:
    """A step on copies."""
    return step(case.call, leaves_of(case), grad)
