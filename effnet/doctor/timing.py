"""How long a call takes on a device."""

import statistics
import time
from collections.abc import Callable

import torch

CUDA_WARM_UP, CUDA_REPEATS = 5, 30
CPU_SECONDS, CPU_REPEATS = 0.03, range(3, 30)


def median_ms(function: Callable[[], object], device: torch.device) -> float:
    """Median milliseconds of ``function``, between events on CUDA's current stream or by the clock.

    On CUDA what is timed is the device's work, and its waiting where the host is slower than that.
    """
    if device.type == "cuda":
        return _cuda_median_ms(function, device)
    times: list[float] = []
    function()
    while len(times) < CPU_REPEATS.start or (sum(times) < CPU_SECONDS * 1e3 and len(times) < CPU_REPEATS.stop):
        times.append(elapsed_ms(function, device))
    return statistics.median(times)


def elapsed_ms(function: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Milliseconds of ``calls`` calls together, all their work done, measured as :func:`median_ms` does."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before, after = _queue_calls(function, device, calls)
        torch.cuda.synchronize(device)
        return before.elapsed_time(after)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) * 1e3


def _cuda_median_ms(function: Callable[[], object], device: torch.device) -> float:
    for _ in range(CUDA_WARM_UP):
        function()
    torch.cuda.synchronize(device)
    pairs = [_queue_calls(function, device) for _ in range(CUDA_REPEATS)]
    torch.cuda.synchronize(device)
    return statistics.median(start.elapsed_time(end) for start, end in pairs)


def _queue_calls(
    function: Callable[[], object], device: torch.device, calls: int = 1
) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    """Events before and after ``calls`` calls, on the device's stream by name: the current device may be another."""
    stream = torch.cuda.current_stream(device)
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record(stream)
    for _ in range(calls):
        function()
    after.record(stream)
    return before, after
