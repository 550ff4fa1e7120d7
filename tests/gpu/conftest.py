"""What every GPU test shares: the marker, a device, a backend that serves it, and the reason where one is missing."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import effnet_kernels as ek

# cuBLAS, in definitions that run on the device, is deterministic only so; read when its first handle is made.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def missing_device() -> str | None:
    """Why nothing in this folder can run, or None."""
    if torch.version.cuda is None:
        return "this torch is not a CUDA build"
    return None if torch.cuda.is_available() else "no CUDA device"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder before markers are selected by, and nothing else."""
    reason = missing_device()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def device() -> torch.device:
    """The current CUDA device."""
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(params=["cuda", "triton"], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs once per backend for CUDA tensors, and is skipped, with the reason, where that is missing."""
    name: str = request.param
    reason = ek.backends()[name]
    if reason is not None:
        pytest.skip(f"no {name} backend: {reason}")
    ek.set_backend(name)
    yield name
    ek.set_backend("auto")


@pytest.fixture
def poisoned_memory(device: torch.device, backend: str) -> Iterator[None]:
    """Fill every uninitialised tensor with NaN, so that an element that a kernel forgets to write shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(64, device=device).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
