"""What every test shares: two threads, whatever the machine has, that leave the cores to others while they wait."""

import os
from collections.abc import Iterator

import pytest

# libgomp reads it when torch is imported. Threads that spin slow down every other process of the tests.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
import torch

# Without a GPU Triton's kernels are interpreted; Triton reads it when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Two threads, so that work is split on every machine and a test that changes the number does not leak it."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(2)
