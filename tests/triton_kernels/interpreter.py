"""Triton's interpreter as the tests use it: faster, in any order of programs, and counting what is read and written.

The interpreter patches the language anew for each call of a device function, though the kernel that calls has it
patched already, and computes each 32-bit sum a second time in 64 bits to see whether it overflows. The first is left
out, the second is a test's choice. And it rounds to bfloat16 toward zero, where compiled kernels round to nearest, ties
to even; here it rounds as they do.
"""

import contextlib
import random
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

SECTOR = 32


@contextlib.contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[Any]:
    """``owner.name`` is ``value`` for a while; gives what it was."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield before
    finally:
        setattr(owner, name, before)


_LANGUAGE_PATCHED: set[int] = set()


def _call_device_function(function: Any, *arguments: Any, **keywords: Any) -> Any:
    """As the interpreter's own, but that a module of device functions has its language patched once."""
    namespace = function.fn.__globals__
    if id(namespace) not in _LANGUAGE_PATCHED:
        _LANGUAGE_PATCHED.add(id(namespace))
        # Triton's own library sees the language under another name than kernels, which it is not restored in.
        if any(value is tl.core for value in namespace.values()):
            interpreter._patch_lang(function.fn)
    return function.rewrite()(*arguments, **keywords)


def _convert_float(values: Any, source: tl.dtype, target: tl.dtype, rounding: Any) -> Any:
    """The bits of ``values`` in ``target``."""
    if (source, target) == (tl.float32, tl.bfloat16):
        narrow = torch.from_numpy(np.array(values, dtype=np.float32)).bfloat16()
        return narrow.view(torch.uint16).numpy()
    if (source, target) == (tl.bfloat16, tl.float32):
        return values.astype(np.uint32) << 16
    raise NotImplementedError(f"{source} to {target}")


@contextlib.contextmanager
def quick(*, overflow_checks: bool = False) -> Iterator[None]:
    """The interpreter without repeated patching, with or without checks for overflow."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(patched(interpreter.InterpretedFunction, "__call__", _call_device_function))
        stack.enter_context(patched(interpreter, "_convert_float", _convert_float))
        if not overflow_checks:
            stack.enter_context(patched(TritonSemantic, "binary_op_sanitize_overflow_impl", lambda *arguments: None))
        yield


@contextlib.contextmanager
def shuffled(seed: int) -> Iterator[None]:
    """Programs run in an order of ``seed``; grids are of one dimension."""
    chooser = random.Random(seed)
    orders: dict[int, list[int]] = {}

    def set_grid_dim(self: Any, x: int, y: int, z: int) -> None:
        assert (y, z) == (1, 1)
        orders[0] = chooser.sample(range(x), x)
        dimensions(self, x, y, z)

    def set_grid_idx(self: Any, x: int, y: int, z: int) -> None:
        index(self, orders[0][x], y, z)

    builder = interpreter.InterpreterBuilder
    with (
        patched(builder, "set_grid_dim", set_grid_dim) as dimensions,
        patched(builder, "set_grid_idx", set_grid_idx) as index,
    ):
        yield


class Row(NamedTuple):
    """What one launch moved of one tensor: bytes that lanes asked for, and bytes of the distinct sectors touched."""

    kernel: str
    tensor: str
    kind: str
    requested: int
    sectors: int


class Traffic:
    """Collects ``rows``, a few for each launch; ``launches`` names the kernels in order."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.launches: list[str] = []
        self._ranges: list[tuple[str, int, int]] = []
        self._requested: dict[tuple[str, str], int] = {}
        self._touched: dict[tuple[str, str], list[Any]] = {}

    def begin(self, kernel: str, arguments: dict[str, Any]) -> None:
        self.launches.append(kernel)
        self._ranges = [
            (name, t.data_ptr(), t.data_ptr() + t.numel() * t.element_size())
            for name, t in arguments.items()
            if isinstance(t, torch.Tensor) and t.numel() > 0
        ]
        self._requested, self._touched = defaultdict(int), defaultdict(list)

    def add(self, kind: str, pointers: Any, mask: Any) -> None:
        """Count an access; a tensor that is passed twice counts as the first of its names."""
        size = pointers.get_element_ty().primitive_bitwidth // 8
        addresses = pointers.data[np.broadcast_to(mask.data.astype(bool), pointers.data.shape)]
        if addresses.size == 0:
            return
        name = next(name for name, begin, end in self._ranges if begin <= addresses[0] < end)
        self._requested[name, kind] += addresses.size * size
        self._touched[name, kind].append(np.unique(addresses // SECTOR))

    def end(self) -> None:
        for (name, kind), touched in self._touched.items():
            distinct = np.unique(np.concatenate(touched)).size * SECTOR
            self.rows.append(Row(self.launches[-1], name, kind, self._requested[name, kind], distinct))


@contextlib.contextmanager
def counted() -> Iterator[Traffic]:
    """Counts every kernel launched meanwhile."""
    traffic = Traffic()

    def masked_load(self: Any, pointers: Any, mask: Any, *rest: Any, **keywords: Any) -> Any:
        traffic.add("load", pointers, mask)
        return load(self, pointers, mask, *rest, **keywords)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **keywords: Any) -> Any:
        traffic.add("store", pointers, mask)
        return store(self, pointers, value, mask, *rest, **keywords)

    def run(self: Any, *arguments: Any, **keywords: Any) -> Any:
        traffic.begin(self.fn.__name__, dict(zip(self.arg_names, arguments, strict=False)))
        result = execute(self, *arguments, **keywords)
        traffic.end()
        return result

    builder = interpreter.InterpreterBuilder
    with (
        patched(builder, "create_masked_load", masked_load) as load,
        patched(builder, "create_masked_store", masked_store) as store,
        patched(interpreter.GridExecutor, "__call__", run) as execute,
    ):
        yield traffic
