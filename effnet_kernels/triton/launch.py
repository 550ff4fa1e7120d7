"""Launching: on the tensors' device, seen through by torch.compile, and interpreted where there is no GPU."""

import contextlib
from typing import Any

import torch
import triton
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter, on any tensors (TRITON_INTERPRET=1 when this was imported)."""


COLUMNS = 8
SUM_BLOCKS = {"BLOCK_C": COLUMNS, "BLOCK_R": 128}
"""The block shape of kernels that sum rows of (rows, C): a sector of channels, for there are few programs else."""


def vector(like: Tensor, *shape: int) -> Tensor:
    """An empty float32 tensor beside ``like``, for numbers per channel."""
    return like.new_empty(shape, dtype=torch.float32)


def launch(kernel: Any, programs: int, x: Tensor, *arguments: Any, num_warps: int = 8, **blocks: Any) -> None:
    """Run ``kernel`` for (x, *arguments) in ``programs`` programs, on the device of ``x``."""
    callable_kernel = kernel if INTERPRETED else torch.library.wrap_triton(kernel)
    with _on_device_of(x):
        callable_kernel[(programs,)](x, *arguments, num_warps=num_warps, **blocks)


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    if x.is_cuda and torch.cuda.device_count() > 1 and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return contextlib.nullcontext()
