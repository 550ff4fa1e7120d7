"""Fused models run fused here, whatever other tests have set."""

from collections.abc import Iterator

import pytest

import effnet


@pytest.fixture(autouse=True)
def fused() -> Iterator[None]:
    with effnet.use_fused(True):
        yield
