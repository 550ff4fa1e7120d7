"""Which implementation serves an operator call: the table of backends, and why one is missing.

The environment variable ``EFFNET_KERNELS_BACKEND`` (``auto | cuda | triton | cpu | reference``) sets the process
default; :func:`set_backend` changes it.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from effnet_kernels.build import missing_reason

ENVIRONMENT_VARIABLE = "EFFNET_KERNELS_BACKEND"
CHOICES = ("auto", "cuda", "triton", "cpu", "reference")

_PACKAGE = Path(__file__).parent


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


_CPU_REASON = _load_library("_C")
_CUDA_LIBRARY_REASON = _load_cuda_library(_CPU_REASON)


def _cuda_reason() -> str | None:
    if _CUDA_LIBRARY_REASON is not None:
        return _CUDA_LIBRARY_REASON
    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def backends() -> Mapping[str, str | None]:
    """Every backend, mapped to the reason it cannot be used here, or to None where it can."""
    return MappingProxyType(
        {
            "cuda": _cuda_reason(),
            "triton": "there are no Triton kernels yet",
            "cpu": _CPU_REASON,
            "reference": None,
        }
    )


def cuda_library_reason() -> str | None:
    """Why the compiled CUDA library is not loaded, or None where it is."""
    return _CUDA_LIBRARY_REASON


def _checked(name: str, source: str) -> str:
    if name not in CHOICES:
        raise ValueError(f"{source}: expected one of {', '.join(CHOICES)}, got {name!r}")
    reason = None if name == "auto" else backends()[name]
    if reason is not None:
        raise RuntimeError(f"{source}: backend {name!r} is not available: {reason}")
    return name


_requested = _checked(os.environ.get(ENVIRONMENT_VARIABLE, "auto"), ENVIRONMENT_VARIABLE)


def set_backend(name: str) -> None:
    """Set the process default to one of ``auto | cuda | triton | cpu | reference``.

    Raises:
        ValueError: ``name`` is none of these.
        RuntimeError: the backend is not available; the message says why.
    """
    global _requested
    _requested = _checked(name, "set_backend")


def requested_backend() -> str:
    """The process default, as set by the environment variable or :func:`set_backend`."""
    return _requested


def backend_for(device: torch.device, dtype: torch.dtype | None = None) -> str:
    """The backend that serves tensors on ``device``: the requested one, or, for ``auto``, the best available.

    The kernels for CUDA do not compute in float64: with that ``dtype``, ``auto`` is the reference there.

    Raises:
        RuntimeError: the requested backend does not serve this device or dtype.
    """
    native = device.type if device.type in ("cpu", "cuda") else "reference"
    float64_on_cuda = native == "cuda" and dtype == torch.float64
    if _requested == "auto":
        # A tensor on a device shows that there is one: only the library can be missing.
        missing = {"cpu": _CPU_REASON, "cuda": _CUDA_LIBRARY_REASON, "reference": None}[native]
        return native if missing is None and not float64_on_cuda else "reference"
    if _requested == "reference":
        return _requested
    if _requested != native:
        raise RuntimeError(f"backend {_requested!r} does not serve tensors on {device}; use 'auto' or 'reference'")
    if float64_on_cuda:
        raise RuntimeError(f"backend {_requested!r} does not compute in float64; use 'auto' or 'reference'")
    return _requested
