"""Launching: on the tensors' device, seen through by torch.compile, and interpreted where there is no GPU."""

import contextlib
import os
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter, on any tensors (TRITON_INTERPRET=1 when this was imported)."""


AUTOTUNE = os.environ.get("EFFNET_KERNELS_TRITON_AUTOTUNE", "0") == "1"
"""Whether streaming and depthwise kernels are timed with several numbers of warps when they first see a size.

Off by default: the first step of a training would take minutes, and since sums are then added in an order that the
timing chose, two runs would no longer agree to the bit.
"""

NUM_WARPS = 8
_SIZES = frozenset({"elements", "height", "width", "out_height", "out_width"})


def sum_blocks(rows: int) -> dict[str, int]:
    """The block shape of kernels that sum (rows, C) over rows.

    A sector of channels, or there would be few programs; more of them where there is little to sum.
    """
    return {"BLOCK_C": 8, "BLOCK_R": 128} if rows > 16 else {"BLOCK_C": 64, "BLOCK_R": 16}


def vector(like: Tensor, *shape: int) -> Tensor:
    """An empty float32 tensor beside ``like``, for numbers per channel."""
    return like.new_empty(shape, dtype=torch.float32)


def packed(*parameters: Tensor | None) -> tuple[Tensor | None, ...]:
    """Parameters as kernels address them: contiguous, in copies where they are not."""
    return tuple(t if t is None else t.contiguous() for t in parameters)


def as_parameter(gradient: Tensor, parameter: Tensor) -> Tensor:
    """``gradient``, contiguous, in the strides that a tensor like ``parameter`` has."""
    like = torch.empty_like(parameter)
    return gradient if gradient.stride() == like.stride() else like.copy_(gradient)


@cache
def tuned(kernel: Any) -> Any:
    """``kernel`` with the number of its warps chosen by timing, anew for each size and block shape."""
    names = set(kernel.arg_names)
    key = [name for name in kernel.arg_names if name in _SIZES or name.isupper()]
    return triton.autotune(
        configs=[triton.Config({}, num_warps=warps) for warps in (4, NUM_WARPS, 16)],
        key=key,
        # Written in place, some of them: what a trial run has overwritten would be the input of the next.
        restore_value=sorted(names & {"out", "dx"}),
    )(kernel)


def launch(kernel: Any, programs: int, *arguments: Any, maxnreg: int | None = None, **blocks: Any) -> None:
    """Run ``kernel`` in ``programs`` programs of 256 threads, on the device of its first argument.

    Left to itself, ptxas now and then spills a few registers to have room for more blocks; ``maxnreg`` tells it not to.
    torch.compile does not know the option, and is not given it.
    """
    if AUTOTUNE and not INTERPRETED and not _SIZES.isdisjoint(kernel.arg_names):
        chosen = torch.library.wrap_triton(tuned(kernel))
    else:
        chosen = kernel if INTERPRETED else torch.library.wrap_triton(kernel)
        blocks["num_warps"] = NUM_WARPS
        if maxnreg is not None and isinstance(chosen, triton.runtime.JITFunction):
            blocks["maxnreg"] = maxnreg
    with _on_device_of(arguments[0]):
        chosen[(programs,)](*arguments, **blocks)


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    if x.is_cuda and torch.cuda.device_count() > 1 and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return contextlib.nullcontext()
