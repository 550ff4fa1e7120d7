"""How a Python half joins an operator's kernels: fake and backward, for the compiled library and for Triton.

Both have the same operators, with the same schemas, in a namespace each.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from effnet_kernels.backend import autograd_library_reason, backends
from effnet_kernels.ops.autograd import autograd_kernel
from effnet_kernels.transforms import check_backward

NAMESPACE = "effnet_kernels"
TRITON_NAMESPACE = "effnet_kernels_triton"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
"""What is registered through it stays for as long as it is there."""

compiled = backends()["cpu"] is None
"""Whether the compiled library is there."""

_in_cpp = autograd_library_reason() is None
"""Whether csrc/autograd.cpp calls the compiled library's backward operators, by its schemas' names."""


class Half(NamedTuple):
    """What is registered with an operator, whoever computes it; ``backward`` takes the namespace first."""

    fake: Callable[..., Any]
    setup_context: Callable[..., None] | None = None
    backward: Callable[..., Any] | None = None


HALVES: dict[str, Half] = {}
"""Of every operator, by name; complete when effnet_kernels.ops is imported."""


CPU_ONLY = frozenset(
    {
        *("pointwise_conv", "pointwise_conv_backward", "mbconv", "mbconv_backward"),
        *("conv_inference", "mbconv_inference", "network_inference", "release_cached_memory"),
    }
)
"""What only the CPU computes in one operator."""


def operators(backend: str) -> Any:
    """The namespace with the operators of ``backend``: ``triton``, or ``cpu`` and ``cuda``, which share one."""
    return torch.ops.effnet_kernels_triton if backend == "triton" else torch.ops.effnet_kernels


def register(name: str, fake: Callable[..., Any]) -> None:
    """Register the fake (meta) implementation of ``name``, which has no gradient."""
    _register(name, Half(fake))


def register_differentiable(
    name: str, fake: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> None:
    """Register the fake implementation and the backward of ``name``, which is called with the namespace first."""
    _register(name, Half(fake, setup_context, backward))


def register_backward(name: str, fake: Callable[..., Any]) -> None:
    """Register a backward operator: its fake, and a double backward that says there is none."""

    def refuse(namespace: Any, ctx: Any, *grads: Any) -> None:
        raise RuntimeError(
            f"{NAMESPACE}::{name} has no second derivative: for double backward use the reference backend "
            "(effnet_kernels.set_backend('reference'))"
        )

    _register(name, Half(fake, None, refuse))


def register_autograd(namespace: str, name: str) -> None:
    """Register the backward of ``name``, if it has one, with the operator in ``namespace``."""
    half = HALVES[name]
    if half.backward is None or (namespace == NAMESPACE and half.setup_context is not None and _in_cpp):
        return
    backward = partial(_backward_of, name, half.backward, _BackwardOperators(getattr(torch.ops, namespace)))
    setup_context = None if half.setup_context is None else partial(_without_zeros, half.setup_context)
    if namespace == NAMESPACE:
        kernel = autograd_kernel(getattr(operators("cpu"), name).default, setup_context, backward)
        _library.impl(name, kernel, "Autograd", with_keyset=True)
    else:
        # A custom operator in Python has its own kernel there, which calls what it is given.
        torch.library.register_autograd(f"{namespace}::{name}", backward, setup_context=setup_context)


def _without_zeros(
    setup_context: Callable[..., None], ctx: Any, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]
) -> None:
    """Spares backward the zeros that autograd fills in for outputs without a gradient, as large as activations."""
    ctx.set_materialize_grads(False)
    setup_context(ctx, inputs, output)


def _backward_of(
    name: str, backward: Callable[..., Any], namespace: Any, ctx: Any, grad: Tensor | None, *rest: Any
) -> Any:
    """No gradient at all where the first output, the only one that has one, was given none."""
    if grad is None:
        return (None,) * len(ctx.needs_input_grad)
    check_backward(name, grad)
    return backward(namespace, ctx, grad, *rest)


class _BackwardOperators:
    """A namespace whose operators run below autograd where it asks for no gradient of a gradient.

    Their kernels at its key, in Python, have nothing to do then but to refuse one.
    """

    def __init__(self, namespace: Any) -> None:
        self._namespace = namespace

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operator = getattr(self._namespace, name)

        def call(*arguments: Any) -> Any:
            if torch.is_grad_enabled() or torch.compiler.is_compiling():
                return operator(*arguments)
            with torch._C._AutoDispatchBelowAutograd():
                return operator(*arguments)

        setattr(self, name, call)
        return call


def _register(name: str, half: Half) -> None:
    HALVES[name] = half
    if compiled:
        torch.library.register_fake(f"{NAMESPACE}::{name}", half.fake)
        register_autograd(NAMESPACE, name)
