"""What every test here shares: CUDA kernels behind the public operators, a simulated device, and memory full of NaN."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from zlib import crc32

import pytest
import torch

from hostcuda.build import sanitizers_loaded, why_not
from hostcuda.kernels import load, serving
from operators.conftest import compiled_backend, poisoned_memory  # noqa: F401
from operators.narrow import leave_out_float64


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """float64 is computed by the CPU's own kernels only."""
    leave_out_float64(Path(__file__).parent, config, items)


def require_host_runtime() -> None:
    """Skip, with the reason, where the kernels cannot be built; in CI that is a failure."""
    reason = why_not()
    if reason is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no host runtime: {reason}")
        pytest.skip(f"no host runtime: {reason}")


@pytest.fixture(scope="session")
def module() -> ModuleType:
    """The CUDA kernels and the runtime's controls."""
    require_host_runtime()
    return load(sanitize=sanitizers_loaded())


@pytest.fixture(scope="module", autouse=True)
def cuda_kernels(module: ModuleType) -> Iterator[None]:
    """The public operators run the CUDA kernels."""
    with serving(module):
        yield


@pytest.fixture(autouse=True)
def one_thread(two_threads: None) -> None:
    """The host runtime has one; more of torch's would only get in the way of each other in small definitions."""
    torch.set_num_threads(1)


def seed_of(request: pytest.FixtureRequest) -> int:
    """A seed of the test's own, which pytest shows where the test fails."""
    seed = crc32(request.node.name.encode())
    print(f"order of threads and blocks: seed {seed}")
    return seed


@pytest.fixture(autouse=True)
def runtime(request: pytest.FixtureRequest, module: ModuleType) -> ModuleType:
    """The runtime with the limits of its own device, no launches recorded, and an order of threads for this test."""
    module.set_device()
    module.reset_launches()
    module.seed(seed_of(request))
    return module
