"""What PyTorch's separate calls move for the same mathematics, and how many kernels they launch at least."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from traffic.budget import Tensors
from traffic.shapes import Shape


@dataclass(frozen=True)
class Call:
    """One ATen call. A tensor that is gone over twice counts twice; tensors of (N, C) and less do not count."""

    what: str
    op: str
    reads: Tensors
    writes: Tensors

    @property
    def moved(self) -> Tensors:
        return self.reads + self.writes


def _in(n: int) -> Tensors:
    return Tensors(ein=n)


def _out(n: int) -> Tensors:
    return Tensors(eout=n)


_NOTHING = Tensors()

FORWARD = (
    Call("BN1: x for the statistics, x to normalise", "native_batch_norm", _in(2), _in(1)),
    Call("SiLU", "silu", _in(1), _in(1)),
    Call("depthwise", "convolution", _in(1), _out(1)),
    Call("BN2", "native_batch_norm", _out(2), _out(1)),
    Call("SiLU", "silu", _out(1), _out(1)),
    Call("mean", "mean", _out(1), _NOTHING),
    Call("z · s", "mul", _out(1), _out(1)),
)
BACKWARD = (
    Call("g · z", "mul", _out(2), _out(1)),
    Call("g · s", "mul", _out(1), _out(1)),
    Call("ds: the sum of g · z", "sum", _out(1), _NOTHING),
    Call("the mean's gradient, expanded", "div", _NOTHING, _out(1)),
    Call("z's two gradients", "add", _out(2), _out(1)),
    Call("SiLU: gradient, input", "silu_backward", _out(2), _out(1)),
    Call("BN2: gradient, input, for the sums and again for dx", "native_batch_norm_backward", _out(4), _out(1)),
    Call("depthwise: dy twice, x; dx and dW", "convolution_backward", Tensors(1, 2), _in(1)),
    Call("SiLU", "silu_backward", _in(2), _in(1)),
    Call("BN1", "native_batch_norm_backward", _in(4), _in(1)),
)
_BN1 = {FORWARD[0], FORWARD[1], BACKWARD[-2], BACKWARD[-1]}


def block(shape: Shape) -> Tensors:
    """Forward and backward together."""
    return sum((call.moved for call in FORWARD + BACKWARD if shape.bn1 or call not in _BN1), Tensors())


@dataclass(frozen=True)
class Dispatched:
    """A call that PyTorch made, views and empty tensors aside."""

    op: str
    tensors: tuple[Tensor, ...]
    kernels: int
    """One, and for a convolution's backward one for each of its gradients: no GPU needs fewer."""


class Calls(TorchDispatchMode):
    """Records what is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Dispatched] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        op = func._schema.name.removeprefix("aten::")
        if not func.is_view and op != "empty":
            outputs = [t for t in tree_leaves(results) if isinstance(t, Tensor)]
            inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            kernels = len(outputs) if op == "convolution_backward" else 1
            self.calls.append(Dispatched(op, (*inputs, *outputs), kernels))
        return results


def dispatched(shape: Shape) -> tuple[list[Dispatched], list[Dispatched]]:
    """The calls of one block, forward and backward; ``shape`` may be a small one."""
    c, k, s = shape.channels, shape.kernel, shape.squeezed

    leaves: list[Tensor] = []

    def normal(*extents: int) -> Tensor:
        leaves.append(torch.randn(*extents, requires_grad=True))
        return leaves[-1]

    def batch_norm_silu() -> Callable[[Tensor], Tensor]:
        gamma, beta, mean, var = normal(c), normal(c), torch.zeros(c), torch.ones(c)
        return lambda x: F.silu(F.batch_norm(x, mean, var, gamma, beta, training=True))

    first, second = batch_norm_silu() if shape.bn1 else lambda x: x, batch_norm_silu()
    u, w = normal(2, c, shape.size, shape.size), normal(c, 1, k, k)
    w1, b1, w2, b2 = normal(s, c, 1, 1), normal(s), normal(c, s, 1, 1), normal(c)
    grad = torch.randn(2, c, shape.out_size, shape.out_size)
    with Calls() as forward:
        a = first(u)
        z = second(F.conv2d(a, w, stride=shape.stride, padding=k // 2, groups=c))
        hidden = F.silu(F.conv2d(z.mean((2, 3), keepdim=True), w1, b1))
        out = z * torch.sigmoid(F.conv2d(hidden, w2, b2))
    with Calls() as backward:
        # Not `backward`, which may copy a gradient into the strides of its leaf.
        torch.autograd.grad(out, leaves, grad)
    return forward.calls, backward.calls
