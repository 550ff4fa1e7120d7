"""Runs what cannot run in the tests' process, whose Triton interprets kernels, and keeps what it wrote.

Results are kept in ``EFFNET_RESOURCES_CACHE`` (by default a folder in the system's temporary one), by a hash of the
sources that decide them and of Triton's and torch's versions, so that nothing is compiled twice: a process that asks
for what another one is compiling waits for it.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

import effnet
import effnet_kernels

TESTS = Path(__file__).resolve().parents[1]

DTYPES: dict[int, tuple[str, ...]] = {
    80: ("bfloat16",),
    90: ("bfloat16", "float16", "float32"),
    100: ("bfloat16",),
}
"""What is compiled for each architecture: all for one of them, and for time's sake bfloat16 alone for the others."""

USUAL_BATCHES = (128, 96, 64)
SMALL_BATCHES = (7, 1)
"""Of the training steps whose specialisations are counted; what the first of each needs is compiled."""


class Unit(NamedTuple):
    """What one process compiles."""

    architecture: int
    dtype: str


TRAINED = Unit(90, "bfloat16")
"""What the training steps of BATCHES are recorded for."""


class TritonError(Exception):
    """Triton is missing or could not do what was asked of it; the message says what."""


@dataclass(frozen=True, order=True)
class Kernel:
    """A kernel and what tells its variants apart; what it has none of is empty.

    ``variant`` names its activations, the tensors it is given of those that may be left out, and its block.
    """

    name: str
    dtype: str = ""
    layout: str = ""
    kernel_size: str = ""
    stride: str = ""
    variant: str = ""

    def __str__(self) -> str:
        tile = f"{self.kernel_size}×{self.kernel_size}/{self.stride}" if self.kernel_size else ""
        return " ".join(part for part in (self.name, self.dtype, self.layout, tile, self.variant) if part)


@dataclass(frozen=True)
class Compiled:
    """One specialisation of a kernel.

    Attributes:
        specialisation: every argument, with what Triton assumes of it.
        shapes: of B0's tensors that it is launched on, C×H×W.
        activations: the arguments that are such tensors.
        registers, stack, local: of a thread; the last two in bytes.
        shared: bytes of a block.
        loads, stores: the bytes of each access to global memory, by argument.
    """

    kernel: Kernel
    specialisation: str
    shapes: list[str]
    activations: list[str]
    registers: int
    shared: int
    warps: int
    stack: int
    local: int
    loads: dict[str, list[int]]
    stores: dict[str, list[int]]

    def __str__(self) -> str:
        return f"{self.kernel} on {', '.join(self.shapes)}"


def missing() -> str | None:
    """Why nothing can be compiled here, or None where it can."""
    return None if importlib.util.find_spec("triton") else "triton is not installed"


@cache
def triton_version() -> str:
    if reason := missing():
        raise TritonError(reason)
    return importlib.import_module("triton").__version__


def compiled(architecture: int) -> list[Compiled]:
    """Every specialisation that B0 needs on an architecture."""
    return [kernel for unit in units([architecture]) for kernel in _compiled(unit)]


def units(architectures: Sequence[int]) -> list[Unit]:
    return [Unit(architecture, dtype) for architecture in architectures for dtype in DTYPES[architecture]]


def compile_all(wanted: Sequence[Unit]) -> None:
    """Compile in as many processes as the machine has cores; in one under pytest-xdist, which has as many itself."""
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with ThreadPoolExecutor(1 if "PYTEST_XDIST_WORKER" in os.environ else jobs) as pool:
        list(pool.map(_compiled, wanted))


@cache
def _compiled(unit: Unit) -> list[Compiled]:
    found = result("compile", str(unit.architecture), unit.dtype)
    return [Compiled(**{**fields, "kernel": Kernel(**fields["kernel"])}) for fields in found]


@cache
def result(module: str, *arguments: str) -> Any:
    """What ``python -m triton_resources.<module> FILE *arguments`` writes to FILE, as JSON."""
    folder = Path(os.environ.get("EFFNET_RESOURCES_CACHE") or Path(tempfile.gettempdir(), "effnet-resources"), "triton")
    folder.mkdir(parents=True, exist_ok=True)
    name = "-".join((module, *arguments))
    kept = folder / f"{name}-{_state()}.json"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            finished = kept.with_suffix(".part")
            _run(f"triton_resources.{module}", str(finished), *arguments)
            finished.replace(kept)
    return json.loads(kept.read_text())


def _run(*command: str) -> None:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("EFFNET_KERNELS_") and name != "TRITON_INTERPRET"
    }
    packages = Path(effnet_kernels.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env={**inherited, "PYTHONPATH": os.pathsep.join(map(str, (TESTS, packages)))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise TritonError(f"python -m {' '.join(command)} failed ({done.returncode}):\n{done.stdout.strip()}")


@cache
def _state() -> str:
    """A hash of all that decides which kernels are launched and what becomes of them."""
    kernels, networks = Path(effnet_kernels.__file__).parent, Path(effnet.__file__).parent
    files = (
        *kernels.glob("*.py"),
        *kernels.glob("ops/*.py"),
        *kernels.glob("triton/*.py"),
        *(networks / f"{name}.py" for name in ("blocks", "config", "model", "switch")),
        *(Path(__file__).with_name(f"{name}.py") for name in ("compile", "launches", "ptx", "toolkit", "trace")),
    )
    state = hashlib.sha256(json.dumps([triton_version(), torch.__version__, sys.version]).encode())
    for file in sorted(files):
        state.update(file.read_bytes() + b"\0")
    return state.hexdigest()[:20]
