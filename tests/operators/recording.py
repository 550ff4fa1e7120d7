"""The compiled operators that a call goes through, forward and backward, with their arguments."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

NAMESPACE = "effnet_kernels"


class Recorder(TorchDispatchMode):
    """Collects every call into ``namespace``, by the operator's name."""

    def __init__(self, namespace: str = NAMESPACE) -> None:
        super().__init__()
        self.namespace = namespace
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if isinstance(func, torch._ops.OpOverload) and func.namespace == self.namespace:
            assert not kwargs
            self.calls.append((func._opname, args))
        return func(*args, **(kwargs or {}))


PREPARED = frozenset({"conv_inference", "mbconv_inference", "network_inference"})
"""Operators of the CPU alone, which take prepared weights: test_inference.py, test_network_inference.py."""


def operators_of_the_namespace(namespace: str = NAMESPACE) -> set[str]:
    """The name of every operator that ``namespace`` defines."""
    names = torch._C._dispatch_get_all_op_names()
    return {name.partition("::")[2] for name in names if name.startswith(f"{namespace}::")}
