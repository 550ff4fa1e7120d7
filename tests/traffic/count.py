"""What a call of a public operator moves through memory, counted where its CUDA kernels run: on the host runtime."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

import effnet_kernels as ek
from effnet_kernels.backend import requested_backend
from hostcuda.kernels import load, serving
from operators.cases import DIFFERENTIABLE, Case, laid_out, mbconv_core_case
from traffic.shapes import Shape

LAYOUTS = ("nchw", "channels_last")
DTYPES = (torch.float32, torch.bfloat16)

ACTIVATIONS = frozenset({"u", "y", "out", "grad", "du", "x", "dx", "residual"})
"""The kernels' names for tensors of activation size; all others are parameters, vectors and partial results."""

PARAMETERS = frozenset(
    {"w", "dw", "w1", "b1", "w2", "b2", "dw1", "db1", "dw2", "db2", "mean", "var", "running mean", "running var"}
    | {f"{name}{suffix}" for name in ("gamma", "beta", "dgamma", "dbeta") for suffix in ("", "1", "2")}
    | {f"mean dv{suffix}" for suffix in ("", "1", "2", " x", "1 x", "2 x")}
)
"""Of the others, those whose size does not depend on the batch."""

_SECTOR = 32


@dataclass(frozen=True)
class Bytes:
    """Read and written: as distinct sectors of each launch, and as the threads asked for them.

    The former is what a large cache leaves to device memory.
    """

    distinct: float = 0
    requested: int = 0

    def __add__(self, other: "Bytes") -> "Bytes":
        return Bytes(self.distinct + other.distinct, self.requested + other.requested)


@dataclass(frozen=True)
class Launch:
    kernel: str
    buffers: dict[str, Bytes]

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Launch":
        buffers = {
            name: Bytes(
                (moved["read_sectors"] + moved["written_sectors"]) * _SECTOR,
                moved["read_bytes"] + moved["written_bytes"],
            )
            for name, moved in record["buffers"].items()
        }
        return cls(record["kernel"], {name: moved for name, moved in buffers.items() if moved.requested})


@dataclass(frozen=True)
class Count:
    """The launches of one forward and one backward call on a batch of ``images``."""

    forward: tuple[Launch, ...]
    backward: tuple[Launch, ...]
    images: int
    itemsize: int

    @property
    def launches(self) -> tuple[Launch, ...]:
        return (*self.forward, *self.backward)

    def distinct_at(self, images: int) -> float:
        """Distinct bytes of everything at another batch, on as many more multiprocessors: parameters do not grow."""
        moved = [(name, b.distinct) for launch in self.launches for name, b in launch.buffers.items()]
        return sum(distinct * (1 if name in PARAMETERS else images / self.images) for name, distinct in moved)


def total(launches: Iterable[Launch]) -> Bytes:
    """Of every buffer."""
    return sum((moved for launch in launches for moved in launch.buffers.values()), Bytes())


def activations(launches: Iterable[Launch]) -> Bytes:
    """Of the tensors of activation size alone."""
    moved = (moved for launch in launches for name, moved in launch.buffers.items() if name in ACTIVATIONS)
    return sum(moved, Bytes())


@contextlib.contextmanager
def _cpu_backend() -> Iterator[None]:
    before = requested_backend()
    ek.set_backend("cpu")
    try:
        yield
    finally:
        ek.set_backend(before)


def counted(case: Case, *, layout: str, backward: bool = True) -> Count:
    """``case`` run once, on as many multiprocessors as it has images."""
    tensors = {name: t.requires_grad_(backward and name in DIFFERENTIABLE) for name, t in case.tensors.items()}
    images = tensors["x"].shape[0]
    module = load()
    with _cpu_backend(), serving(module):
        module.set_device(multiprocessors=images)
        module.reset_launches()
        try:
            out = case.call(tensors)
            forward = [Launch.of(record) for record in module.launches()]
            if backward:
                out.backward(laid_out(torch.ones_like(out), layout))
            launches = [Launch.of(record) for record in module.launches()]
        finally:
            module.reset_launches()
            module.set_device()
    return Count(tuple(forward), tuple(launches[len(forward) :]), images, out.element_size())


@cache
def core(shape: Shape, layout: str, dtype: torch.dtype, *, inference: bool = False, images: int | None = None) -> Count:
    """mbconv_core at ``shape``, by default on its own number of images."""
    statistics = "frozen" if inference else "training"
    case = mbconv_core_case(
        (images or shape.images, shape.channels, shape.size, shape.size),
        kernel=shape.kernel,
        stride=shape.stride,
        squeezed=shape.squeezed,
        dtype=dtype,
        layout=layout,
        bn1=statistics if shape.bn1 else None,
        bn2=statistics,
    )
    return counted(case, layout=layout, backward=not inference)
