"""What every operator test shares: the compiled backend is there, and fresh memory is full of NaN."""

import os
from collections.abc import Iterator

import pytest
import torch

import effnet_kernels as ek


@pytest.fixture(autouse=True)
def compiled_backend() -> Iterator[None]:
    """Skip, with the reason, where the compiled library is missing; in CI its absence is a failure."""
    reason = ek.backends()["cpu"]
    if reason is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no cpu backend: {reason}")
        pytest.skip(f"no cpu backend: {reason}")
    ek.set_backend("cpu")
    yield
    ek.set_backend("auto")


@pytest.fixture(autouse=True)
def poisoned_memory(compiled_backend: None) -> Iterator[None]:
    """Fill every uninitialised tensor with NaN, so that an element that a kernel forgets to write shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(64).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
