"""Which implementation serves an operator call: the table of backends, and why one is missing.

The environment variable ``EFFNET_KERNELS_BACKEND`` (``auto | cuda | triton | cpu | reference``) sets the process
default; :func:`set_backend` changes it.
"""

import importlib
import importlib.util
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from effnet_kernels.build import autograd_problem, missing_reason
from effnet_kernels.transforms import unsupported_transform

ENVIRONMENT_VARIABLE = "EFFNET_KERNELS_BACKEND"
CHOICES = ("auto", "cuda", "triton", "cpu", "reference")

_PACKAGE = Path(__file__).parent
_LOGGER = logging.getLogger(__name__)


def _load_library(name: str) -> str | None:
    """Load ``name`` from the package's folder; the reason it could not be, or None."""
    path = _PACKAGE / f"{name}.abi3.so"
    if not path.exists():
        return missing_reason(name)
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} did not load: {error}"
    return None


def _load_cuda_library(cpu_reason: str | None) -> str | None:
    if torch.version.cuda is None:
        return "this torch is not a CUDA build"
    if cpu_reason is not None:
        return f"the operators' schemas are missing: {cpu_reason}"
    return _load_library("_C_cuda")


def _load_autograd_library(cpu_reason: str | None) -> str | None:
    return cpu_reason or autograd_problem() or _load_library("_autograd")


_CPU_REASON = _load_library("_C")
_CUDA_LIBRARY_REASON = _load_cuda_library(_CPU_REASON)
_AUTOGRAD_REASON = _load_autograd_library(_CPU_REASON)


def _cuda_reason() -> str | None:
    if _CUDA_LIBRARY_REASON is not None:
        return _CUDA_LIBRARY_REASON
    return None if torch.cuda.is_available() else "torch sees no CUDA device"


_TRITON_CAPABILITY = (8, 0)


def interpreting() -> bool:
    """Whether Triton's kernels run in its interpreter, on tensors of any device."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def _triton_reason() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if interpreting():
        return None
    if torch.version.cuda is None:
        return "this torch is not a CUDA build"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device; TRITON_INTERPRET=1 runs the kernels without one, slowly"
    least = min(torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count()))
    if least < _TRITON_CAPABILITY:
        return f"Triton needs compute capability 8.0, a device here has {least[0]}.{least[1]}"
    return None


def backends() -> Mapping[str, str | None]:
    """Every backend, mapped to the reason it cannot be used here, or to None where it can."""
    return MappingProxyType(
        {
            "cuda": _cuda_reason(),
            "triton": _triton_reason(),
            "cpu": _CPU_REASON,
            "reference": None,
        }
    )


def cuda_library_reason() -> str | None:
    """Why the compiled CUDA library is not loaded, or None where it is."""
    return _CUDA_LIBRARY_REASON


def autograd_library_reason() -> str | None:
    """Why the operators' backward is called in Python, or None where C++ does it."""
    return _AUTOGRAD_REASON


def _checked(name: str, source: str) -> str:
    if name not in CHOICES:
        raise ValueError(f"{source}: expected one of {', '.join(CHOICES)}, got {name!r}")
    reason = None if name == "auto" else backends()[name]
    if reason is not None:
        raise RuntimeError(f"{source}: backend {name!r} is not available: {reason}")
    return name


_requested = _checked(os.environ.get(ENVIRONMENT_VARIABLE, "auto"), ENVIRONMENT_VARIABLE)
_SERVED = {"cpu": "cpu", "cuda": "cuda", "triton": "cuda"}
"""The type of device whose tensors a backend is for."""

_serves_cuda = "reference"
"""What ``auto`` gives CUDA tensors: the compiled library, else Triton, else the reference."""


def prepare() -> None:
    """Choose what serves CUDA tensors and define Triton's operators where they may be called.

    Not left to the first call, which torch.compile may be tracing.
    """
    global _serves_cuda
    missing = _CUDA_LIBRARY_REASON
    if missing is None:
        _serves_cuda = "cuda"
    elif _requested == "auto" and torch.cuda.is_available():
        reason = _triton_reason()
        _serves_cuda = "triton" if reason is None else "reference"
        _LOGGER.info("CUDA tensors are served by %s: no compiled CUDA library: %s", _serves_cuda, missing)
        if reason is not None:
            _LOGGER.info("no Triton kernels: %s", reason)
    if _requested == "triton" or _serves_cuda == "triton":
        importlib.import_module("effnet_kernels.triton")


def set_backend(name: str) -> None:
    """Set the process default to one of ``auto | cuda | triton | cpu | reference``.

    Raises:
        ValueError: ``name`` is none of these.
        RuntimeError: the backend is not available; the message says why.
    """
    global _requested
    _requested = _checked(name, "set_backend")
    prepare()


def requested_backend() -> str:
    """The process default, as set by the environment variable or :func:`set_backend`."""
    return _requested


def backend_for(device: torch.device, dtype: torch.dtype | None = None) -> str:
    """The backend that serves tensors on ``device``: the requested one, or, for ``auto``, the best available.

    On CUDA devices that is the compiled library, else Triton, else the reference. Neither of the first two computes in
    float64: with that ``dtype``, ``auto`` is the reference there. On every device ``auto`` is the reference under
    ``torch.func`` and forward-mode differentiation, for which kernels have no rules, and in an ONNX export.

    Raises:
        RuntimeError: the requested backend does not serve this device, dtype or transform.
    """
    if _requested == "reference":
        return _requested
    transform = unsupported_transform()
    if transform is not None:
        if _requested == "auto":
            return "reference"
        raise RuntimeError(f"backend {_requested!r} does not serve {transform}; use 'auto' or 'reference'")
    if _requested == "auto":
        if device.type == "cpu":
            return "cpu" if _CPU_REASON is None else "reference"
        return _serves_cuda if device.type == "cuda" and dtype != torch.float64 else "reference"
    # Its interpreter serves both.
    if device.type != _SERVED[_requested] and not (_requested == "triton" and device.type == "cpu" and interpreting()):
        raise RuntimeError(f"backend {_requested!r} does not serve tensors on {device}; use 'auto' or 'reference'")
    if dtype == torch.float64 and _requested != "cpu":
        raise RuntimeError(f"backend {_requested!r} does not compute in float64; use 'auto' or 'reference'")
    return _requested
