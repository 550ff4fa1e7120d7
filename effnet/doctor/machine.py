"""What is here: the devices, the backends that serve them, and the versions of everything below."""

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch

import effnet_kernels as ek
from effnet.errors import OptionError
from effnet_kernels.build import describe

NATIVE_BACKENDS = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}
DRIVER_FILE = Path("/proc/driver/nvidia/version")
CPU_FILE = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Gpu:
    """One CUDA device: ``capability`` is its compute capability, ``memory`` its bytes."""

    device: str
    name: str
    capability: str
    memory: int
    multiprocessors: int


@dataclass(frozen=True)
class Machine:
    """Where a report was made.

    Attributes:
        version: of effnet_kernels.
        python: its version.
        system: the operating system and its release.
        torch: its version.
        torch_cuda: the CUDA version that torch was built with, or None.
        build: how effnet_kernels was built, as ``effnet_kernels.build.describe()`` says it.
        backends: every backend, with the reason why it is missing or None.
        cpu: the processor's name.
        processors: of the machine.
        threads: that torch uses.
        driver: the NVIDIA driver's version, or None where there is none.
        gpus: every visible CUDA device.
        gpus_missing: why there is no CUDA device, or None.
    """

    version: str
    python: str
    system: str
    torch: str
    torch_cuda: str | None
    build: str
    backends: dict[str, str | None]
    cpu: str
    processors: int
    threads: int
    driver: str | None
    gpus: tuple[Gpu, ...]
    gpus_missing: str | None


def this_machine() -> Machine:
    """The machine and the installation of this process."""
    return Machine(
        version=ek.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        torch=torch.__version__,
        torch_cuda=torch.version.cuda,
        build=describe(),
        backends=dict(ek.backends()),
        cpu=_found(r"^model name\s*:\s*(.+)$", CPU_FILE) or platform.machine(),
        processors=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        driver=_found(r"Kernel Module.*?\s(\d+\.\d[\d.]*)\s", DRIVER_FILE),
        gpus=tuple(_gpu(index) for index in range(_gpu_count())),
        gpus_missing=_gpus_missing(),
    )


def backends_of(device: torch.device) -> tuple[str, ...]:
    """The backends with kernels for ``device``; the reference, which then serves its tensors, where there is none."""
    available = tuple(name for name in NATIVE_BACKENDS[device.type] if ek.backends()[name] is None)
    return available or ("reference",)


def choose_devices(choice: str | None) -> list[torch.device]:
    """The devices of ``cpu``, ``cuda`` (all of them) or ``cuda:1``; of None, the CPU and every CUDA device.

    Raises:
        OptionError: there is no such device; the message says why.
    """
    cpu, gpus = torch.device("cpu"), [torch.device("cuda", index) for index in range(_gpu_count())]
    if choice is None:
        return [cpu, *gpus]
    if choice == "cpu":
        return [cpu]
    if choice == "cuda" and gpus:
        return gpus
    chosen = [gpu for gpu in gpus if str(gpu) == choice]
    if not chosen:
        names = ", ".join(["cpu", *(["cuda"] if gpus else []), *map(str, gpus)])
        missing = _gpus_missing()
        reason = f" ({missing})" if missing is not None and choice.startswith("cuda") else ""
        raise OptionError("device", f"one of {names}", f"{choice!r}{reason}")
    return chosen


def _gpu_count() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _gpus_missing() -> str | None:
    if torch.version.cuda is None:
        return "this torch is not a CUDA build"
    return None if _gpu_count() else "torch sees no CUDA device"


def _gpu(index: int) -> Gpu:
    properties = torch.cuda.get_device_properties(index)
    return Gpu(
        device=f"cuda:{index}",
        name=properties.name,
        capability=f"{properties.major}.{properties.minor}",
        memory=properties.total_memory,
        multiprocessors=properties.multi_processor_count,
    )


def _found(pattern: str, path: Path) -> str | None:
    """What ``pattern`` captures in the file, or None where there is no such file or line."""
    if not path.exists():
        return None
    match = re.search(pattern, path.read_text(errors="replace"), re.MULTILINE)
    return match and match[1].strip()
