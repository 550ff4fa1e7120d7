"""What the traffic tests need: the host runtime, and the compiled operators that its kernels stand in for."""

import os

import pytest

import effnet_kernels as ek
from hostcuda.build import why_not


@pytest.fixture(autouse=True, scope="session")
def host_runtime() -> None:
    """Skip, with the reason, where the CUDA sources cannot run; in CI that is a failure."""
    reason = why_not() or ek.backends()["cpu"]
    if reason is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"no host runtime: {reason}")
    pytest.skip(f"no host runtime: {reason}")
