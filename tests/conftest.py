"""What every test shares: two threads, whatever the machine has."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Two threads, so that work is split on every machine and a test that changes the number does not leak it."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(2)
