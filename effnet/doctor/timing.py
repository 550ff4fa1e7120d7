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
        start = time.perf_counter()
        function()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def _cuda_median_ms(function: Callable[[], object], device: torch.device) -> float:
    # Recorded on the device's stream by name: the current device may be another one.
    stream = torch.cuda.current_stream(device)
    for _ in range(CUDA_WARM_UP):
        function()
    torch.cuda.synchronize(device)
    pairs = []
    for _ in range(CUDA_REPEATS):
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record(stream)
        function()
        pair[1].record(stream)
        pairs.append(pair)
    torch.cuda.synchronize(device)
    return statistics.median(start.elapsed_time(end) for start, end in pairs)
