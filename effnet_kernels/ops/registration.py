"""How a Python half joins a compiled operator: fake and backward, where the compiled library is there."""

from collections.abc import Callable
from typing import Any

import torch

from effnet_kernels.backend import backends

NAMESPACE = "effnet_kernels"

compiled = backends()["cpu"] is None
"""Whether the schemas exist; without them every call goes to the reference."""


def register(name: str, fake: Callable[..., Any]) -> None:
    """Register the fake (meta) implementation of ``name``."""
    if compiled:
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake)


def register_differentiable(
    name: str, fake: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> None:
    """Register the fake implementation and the backward of ``name``."""
    register(name, fake)
    if compiled:
        torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context)


def register_backward(name: str, fake: Callable[..., Any]) -> None:
    """Register a backward operator: its fake, and a double backward that says there is none."""

    def refuse(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(
            f"{NAMESPACE}::{name} has no second derivative: for double backward use the reference backend "
            "(effnet_kernels.set_backend('reference'))"
        )

    register(name, fake)
    if compiled:
        torch.library.register_autograd(f"{NAMESPACE}::{name}", refuse)
