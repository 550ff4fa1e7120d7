"""Memory of a step, each side in a process of its own, where nothing is left over from another.

On the CPU the peak is that of the resident set (``VmHWM``, set back before the step), on CUDA that of torch's
allocator. Saved bytes are what autograd holds between forward and backward, without parameters and buffers.
"""

import ctypes
import gc
import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import effnet_kernels
from effnet.bench.cases import Case
from effnet.bench.problem import Problem
from effnet.bench.sides import Side, TorchRunner, all_sides
from effnet.bench.threads import using_threads
from effnet.info import SavedStorages

TIMEOUT_SECONDS = 1800


@dataclass(frozen=True)
class Memory:
    """Bytes of one step of one side.

    Attributes:
        peak: the largest resident set, libraries and weights included; on CUDA the largest allocation.
        step: by how much the step raised it.
        saved: held for backward; None in inference, and for other runtimes.
    """

    peak: int
    step: int
    saved: int | None


def measure_memory(case: Case, side: Side) -> Memory:
    """The memory of a step, from a fresh process.

    Raises:
        RuntimeError: the process failed; the message has its last line.
    """
    request = json.dumps({"case": case.to_json(), "side": side.name})
    try:
        run = subprocess.run(
            [sys.executable, "-m", "effnet.bench.memory"],
            input=request,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"memory of {side.name}: no answer in {TIMEOUT_SECONDS} s") from error
    if run.returncode != 0:
        last = (run.stderr.strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"memory of {side.name}: {last}")
    return Memory(**json.loads(run.stdout.splitlines()[-1]))


def _answer(request: dict[str, Any]) -> Memory:
    case = Case.from_json(request["case"])
    device = torch.device(case.device)
    side = next(side for side in all_sides(device) if side.name == request["side"])
    with using_threads(case.threads):
        problem = Problem(case)
        runner = side.build(problem)
        runner.activate()
        # Compiles, and lets libraries allocate what they keep.
        runner.outcome()
        runner.step()
        saved = _saved_bytes(runner) if case.training and isinstance(runner, TorchRunner) else None
        before = _reset_peak(device)
        runner.step()
        peak = _peak(device)
    return Memory(peak, peak - before, saved)


def _saved_bytes(runner: TorchRunner) -> int:
    storages = SavedStorages(runner.module)
    with storages.counted():
        runner.step()
    return storages.bytes


def _reset_peak(device: torch.device) -> int:
    """Let the peak begin anew; the bytes in use now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    # What is free is given back, or the step would find it there and not be seen to need it.
    effnet_kernels.release_cached_memory()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(asdict(_answer(json.load(sys.stdin)))))
