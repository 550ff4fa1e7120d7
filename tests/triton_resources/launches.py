"""Every Triton kernel that EfficientNet-B0 launches, recorded without a GPU: B0 runs on tensors that have no memory.

With TRITON_INTERPRET unset, for nothing is recorded from interpreted kernels::

    PYTHONPATH=tests python -m triton_resources.launches FILE   # what B0's training is specialised to, as JSON
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import BaseBackend, GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

import effnet
from effnet.config import find_variant
from effnet_kernels import backend as backends
from triton_resources.toolkit import SMALL_BATCHES, TRAINED, USUAL_BATCHES

B0 = "efficientnet_b0"
LAYOUTS = {"channels_last": torch.channels_last, "nchw": torch.contiguous_format}


@dataclass(frozen=True)
class Pointer:
    """What Triton asks of a tensor. Where storage begins, it is aligned, as every allocation on a GPU is."""

    dtype: torch.dtype
    offset: int
    shape: torch.Size

    def data_ptr(self) -> int:
        return self.offset * self.dtype.itemsize


@dataclass
class Specialisation:
    """What Triton compiles a kernel for, and the tensors of activations that it is then launched on.

    Attributes:
        bound: the arguments of one such launch, by name.
        types: of every argument, with what Triton assumes of its value.
        options: of the compilation.
        shapes: (C, H, W) of the first argument of every launch, where it is such a tensor.
    """

    kernel: JITFunction[Any]
    bound: dict[str, Any]
    types: list[tuple[str, Any]]
    options: dict[str, Any]
    shapes: set[tuple[int, ...]] = field(default_factory=set)

    @property
    def activations(self) -> dict[str, Pointer]:
        """The arguments that are tensors of activations; a depthwise weight looks like one."""
        return {name: p for name, p in self.bound.items() if isinstance(p, Pointer) and len(p.shape) == 4}

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the first argument where it is a tensor of activations: of others, kernels see float32 only."""
        first = self.activations.get(next(iter(self.bound)))
        return first.dtype if first is not None else None

    def __str__(self) -> str:
        arguments = (
            f"{name}={self.bound[name]}" if kind == "constexpr" else f"{name}: {kind}{' aligned' * (known == 'D')}"
            for name, (kind, known) in zip(self.bound, self.types, strict=True)
        )
        options = (f"{name}={value}" for name, value in sorted(self.options.items()))
        return f"{self.kernel.__name__}({', '.join((*arguments, *options))})"


Found = dict[str, Specialisation]


@cache
def _binder(kernel: JITFunction[Any], backend: BaseBackend) -> Any:
    return create_function_from_signature(kernel.signature, kernel.params, backend)


# A JITFunction, so that it is launched as one: with the options that torch.compile does not know.
class Recorder(JITFunction[Any]):
    """Stands for a kernel, and writes down what it would be compiled for instead of running it."""

    def __init__(self, kernel: JITFunction[Any], backend: BaseBackend, found: Found) -> None:
        self.recorded, self.backend, self.found = kernel, backend, found

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.record

    def record(self, *arguments: Any, **options: Any) -> None:
        given = [Pointer(a.dtype, int(a.storage_offset()), a.shape) if isinstance(a, Tensor) else a for a in arguments]
        bound, types, rest = _binder(self.recorded, self.backend)(*given, **options)
        specialisation = Specialisation(self.recorded, bound, types, rest)
        specialisation = self.found.setdefault(str(specialisation), specialisation)
        if specialisation.dtype is not None:
            specialisation.shapes.add(tuple(given[0].shape[1:]))


def _true() -> bool:
    return True


@contextmanager
def served_by_triton() -> Iterator[None]:
    """Calls on tensors of the CPU reach the Triton operators, as those of the interpreter do.

    For there are no tensors of a GPU without one: autograd refuses them even where they have no memory.
    """
    requested = mock.patch.object(backends, "_requested", "triton")
    with requested, mock.patch.object(backends, "interpreting", _true):
        backends.prepare()
        yield


@contextmanager
def recording(architecture: int) -> Iterator[Found]:
    """What is launched meanwhile is recorded, as it would be compiled for sm_``architecture``."""
    backend = make_backend(GPUTarget("cuda", architecture, 32))
    found: Found = {}
    wrap = mock.patch.object(torch.library, "wrap_triton", lambda kernel: Recorder(kernel, backend, found))
    with served_by_triton(), wrap, FakeTensorMode():
        yield found


def run_b0(
    dtype: torch.dtype, layout: str, batch: int, *, training: bool = True, drop_connect: float | None = None
) -> None:
    """One step of training, or one call in inference, with float32 parameters, at B0's own resolution."""
    model = effnet.create_model(B0, fused=True, drop_connect=drop_connect).train(training)
    side = find_variant(B0).resolution
    images = torch.empty(batch, 3, side, side).to(memory_format=LAYOUTS[layout])
    with torch.set_grad_enabled(training):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(images)
        if training:
            logits.float().sum().backward()


def b0_launches(architecture: int, dtype: torch.dtype) -> list[Specialisation]:
    """Of training, with drop-connect and without, with few images and many, and of inference, in both layouts."""
    with recording(architecture) as found:
        for layout in LAYOUTS:
            run_b0(dtype, layout, SMALL_BATCHES[0])
            run_b0(dtype, layout, USUAL_BATCHES[0])
            run_b0(dtype, layout, USUAL_BATCHES[0], drop_connect=0.0)
            run_b0(dtype, layout, USUAL_BATCHES[0], training=False)
    return list(found.values())


def main() -> None:
    assert not triton.knobs.runtime.interpret, "TRITON_INTERPRET is set"
    (output,) = sys.argv[1:]
    trained: dict[str, dict[int, list[str]]] = {layout: {} for layout in LAYOUTS}
    for layout, by_batch in trained.items():
        for batch in (*USUAL_BATCHES, *SMALL_BATCHES):
            with recording(TRAINED.architecture) as found:
                run_b0(getattr(torch, TRAINED.dtype), layout, batch)
            by_batch[batch] = sorted(found)
    Path(output).write_text(json.dumps(trained))


if __name__ == "__main__":
    main()
