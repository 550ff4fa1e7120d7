"""Memory for prepared weights: a network's lie together, in huge pages where the system has them.

Weights are read once per call, more than the processor's address cache covers in pages of 4 KiB: each page then costs a
walk through the page tables, a tenth of the time of the layers with most weights.
"""

import mmap
import threading
from contextlib import suppress

import torch
from torch import Tensor

_CHUNK = 2 << 20  # float32 values
_HUGE_PAGE = 2 << 20
_ALIGNMENT = 16  # float32 values of the widest vector


class _Chunk:
    """A run of float32 values that tensors are cut from; it lives as long as they do."""

    def __init__(self, size: int) -> None:
        memory = _map(size * 4 + _HUGE_PAGE)
        offset = -memory.data_ptr() % _HUGE_PAGE
        self.values = memory[offset : offset + size * 4].view(torch.float32)
        self.used = 0

    def take(self, size: int) -> Tensor | None:
        first = self.used
        if first + size > self.values.numel():
            return None
        self.used = first + -(-size // _ALIGNMENT) * _ALIGNMENT
        return self.values[first : first + size]


def _map(size: int) -> Tensor:
    """``size`` bytes of zeros."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(size, dtype=torch.uint8)
    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        region.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(region, dtype=torch.uint8)


_current: _Chunk | None = None
_lock = threading.Lock()


def _take(size: int) -> Tensor:
    global _current
    with _lock:
        taken = None if _current is None else _current.take(size)
        if taken is None:
            _current = _Chunk(max(size, _CHUNK))
            taken = _current.take(size)
    assert taken is not None
    return taken


def join(sections: list[Tensor]) -> Tensor:
    """The float32 ``sections``, one after the other, in one tensor of one dimension."""
    # A chunk outlives the inference mode that it may be made in.
    with torch.inference_mode(False), torch.no_grad():
        joined = _take(sum(section.numel() for section in sections))
        return torch.cat([section.flatten() for section in sections], out=joined)
