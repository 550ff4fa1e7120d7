"""Where and when rows were measured: what each of them carries, so that none is read without it."""

import os
import platform
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version

import torch

from effnet.doctor.machine import Machine, this_machine

RIVALS = ("timm", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Stamp:
    """A run's machine and versions.

    Attributes:
        when: the time at which the run began, UTC.
        machine: the processor or, where the tensors are on it, the GPU, with how many processors may be used.
        capability: the instruction set that the CPU kernels use.
        versions: of everything that computes.
        load: the machine's load average when the run began; above the number of threads, others were computing.
    """

    when: str
    machine: str
    capability: str
    versions: str
    load: str


def take_stamp(device: torch.device) -> Stamp:
    """The stamp of a run that begins now."""
    machine = this_machine()
    return Stamp(
        when=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S"),
        machine=_name(machine, device),
        capability=torch.backends.cpu.get_cpu_capability(),
        versions=_versions(machine),
        load=f"{os.getloadavg()[0]:.1f}",
    )


def _name(machine: Machine, device: torch.device) -> str:
    gpu = next((gpu for gpu in machine.gpus if gpu.device == str(device)), None)
    if gpu is not None:
        return f"{gpu.name}, {gpu.memory / 2**30:.0f} GiB, driver {machine.driver or 'unknown'}"
    return f"{machine.cpu}, {machine.processors} processors, {platform.system()}"


def _versions(machine: Machine) -> str:
    versions = {"effnet-kernels": machine.version, "torch": machine.torch, "python": machine.python}
    return ", ".join(f"{name} {number}" for name, number in (versions | _installed(RIVALS)).items())


def _installed(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
