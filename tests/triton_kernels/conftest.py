"""What every test here shares: Triton kernels behind the public operators, interpreted, and memory full of NaN."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import effnet_kernels as ek
from effnet_kernels.backend import interpreting
from operators.conftest import poisoned_memory  # noqa: F401
from operators.narrow import leave_out_float64


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """float64 is computed by the CPU's own kernels only."""
    leave_out_float64(Path(__file__).parent, config, items)


def missing_interpreter() -> str | None:
    """Why nothing in this folder can run, or None."""
    reason = ek.backends()["triton"]
    if reason is None and not interpreting():
        return "TRITON_INTERPRET=1 is not set, for there is a GPU: tests/gpu runs the Triton kernels there"
    return reason


@pytest.fixture(autouse=True)
def compiled_backend() -> Iterator[None]:
    """Triton serves; where it cannot, tests skip with the reason, and in CI, where there is no GPU, they fail."""
    reason = missing_interpreter()
    if reason is not None:
        if os.environ.get("CI") == "true" and not torch.cuda.is_available():
            pytest.fail(f"no triton backend: {reason}")
        pytest.skip(f"no triton backend: {reason}")
    from triton_kernels.interpreter import quick

    ek.set_backend("triton")
    with quick():
        yield
    ek.set_backend("auto")


@pytest.fixture(autouse=True)
def one_thread(two_threads: None) -> None:
    """The interpreter has one; more of torch's would only get in the way of each other in small definitions."""
    torch.set_num_threads(1)


@pytest.fixture
def device() -> torch.device:
    """Where the tests that are written for a GPU put their tensors."""
    return torch.device("cpu")
