"""The choice of a backend: by environment variable, call and device, and the errors that say why one is missing."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import effnet_kernels as ek
from effnet_kernels import backend
from processes import run_python

DEVICES = {"cpu": "cpu", "meta": "reference"}


@pytest.fixture(autouse=True)
def auto_afterwards() -> Iterator[None]:
    yield
    ek.set_backend("auto")


def test_every_backend_is_available_or_says_why() -> None:
    table = ek.backends()
    assert tuple(table) == backend.CHOICES[1:]
    assert all(reason is None or len(reason) > 10 for reason in table.values())
    assert table["reference"] is None


@pytest.mark.parametrize(("device", "native"), DEVICES.items())
def test_auto_takes_the_native_backend_of_the_device(device: str, native: str) -> None:
    expected = native if ek.backends()[native] is None else "reference"
    assert ek.backend_for(torch.device(device)) == expected


def test_reference_serves_every_device() -> None:
    ek.set_backend("reference")
    assert backend.requested_backend() == "reference"
    assert {ek.backend_for(torch.device(device)) for device in DEVICES} == {"reference"}


def test_a_backend_that_does_not_serve_the_device_is_refused() -> None:
    if (reason := ek.backends()["cpu"]) is not None:
        pytest.skip(f"no cpu backend: {reason}")
    ek.set_backend("cpu")
    with pytest.raises(RuntimeError, match="'cpu' does not serve tensors on meta"):
        ek.backend_for(torch.device("meta"))


def test_an_unknown_backend_is_refused_and_changes_nothing() -> None:
    ek.set_backend("reference")
    with pytest.raises(ValueError, match=r"expected one of auto, cuda, triton, cpu, reference, got 'gpu'"):
        ek.set_backend("gpu")
    assert backend.requested_backend() == "reference"


@pytest.mark.parametrize("name", backend.CHOICES[1:])
def test_an_unavailable_backend_is_refused_with_its_reason(name: str) -> None:
    reason = ek.backends()[name]
    if reason is None:
        ek.set_backend(name)
        return
    with pytest.raises(RuntimeError) as caught:
        ek.set_backend(name)
    assert str(caught.value) == f"set_backend: backend {name!r} is not available: {reason}"


def test_environment_variable_sets_the_default(tmp_path: Path) -> None:
    code = "from effnet_kernels import backend; print(backend.requested_backend())"
    assert run_python(code, tmp_path, EFFNET_KERNELS_BACKEND="reference").stdout == "reference\n"


def test_environment_variable_with_an_unknown_backend_is_refused(tmp_path: Path) -> None:
    result = run_python("import effnet_kernels", tmp_path, EFFNET_KERNELS_BACKEND="gpu")
    assert result.returncode != 0
    assert "EFFNET_KERNELS_BACKEND: expected one of auto, cuda, triton, cpu, reference, got 'gpu'" in result.stderr


def test_environment_variable_with_an_unavailable_backend_is_refused_with_its_reason(tmp_path: Path) -> None:
    unavailable = [(name, reason) for name, reason in ek.backends().items() if reason is not None]
    if not unavailable:
        pytest.skip("every backend is available here")
    name, reason = unavailable[0]
    result = run_python("import effnet_kernels", tmp_path, EFFNET_KERNELS_BACKEND=name)
    assert result.returncode != 0
    assert f"EFFNET_KERNELS_BACKEND: backend {name!r} is not available: {reason}" in result.stderr
