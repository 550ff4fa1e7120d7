"""How many threads compute, and on which processors: stated and the same for every side."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from effnet.errors import OptionError

_PINNABLE = hasattr(os, "sched_setaffinity")


def allowed_processors() -> list[int]:
    """The processors that this process may use."""
    return sorted(os.sched_getaffinity(0)) if _PINNABLE else list(range(os.cpu_count() or 1))


def check_threads(threads: int) -> None:
    """Refuse more threads than there are processors, which would wait for each other."""
    allowed = len(allowed_processors())
    if not 1 <= threads <= allowed:
        raise OptionError("threads", f"a number from 1 to {allowed}, the processors this process may use", threads)


@contextmanager
def using_threads(threads: int, *, pin: bool = True) -> Iterator[None]:
    """Compute with ``threads`` threads, on as many processors (the first that are allowed) where ``pin``."""
    before, allowed = torch.get_num_threads(), allowed_processors()
    torch.set_num_threads(threads)
    if pin:
        _move_all_threads(allowed[:threads])
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if pin:
            _move_all_threads(allowed)


def _move_all_threads(processors: list[int]) -> None:
    """Threads that exist keep to their processors unless each is told; new ones do as the one that starts them."""
    if not _PINNABLE:
        return
    for thread in os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else ["0"]:
        try:
            os.sched_setaffinity(int(thread), processors)
        except ProcessLookupError:
            continue
