"""No Triton kernel may need more of a GPU than limits.csv says, or narrower accesses than need be.

Every kernel that EfficientNet-B0 launches, in training and in inference, is compiled for each architecture, without a
GPU: in bfloat16, and for one of them in float32 and float16 as well.
"""

from collections.abc import Callable

import pytest

from resources.occupancy import ARCHITECTURES, Architecture
from triton_resources.report import UPDATE, Row, read_limits, report
from triton_resources.toolkit import Compiled, compile_all, compiled, triton_version, units

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STREAMING = ("statistics", "normalize", "backward_sums", "input_gradient", "pool")
# Those that write activations.
WRITING = ("normalize", "input_gradient")

VECTOR = 16
"""Bytes of the widest access that every architecture has."""


@pytest.fixture(params=ARCHITECTURES, ids=lambda a: f"sm_{a.number}", scope="module")
def architecture(request: pytest.FixtureRequest) -> Architecture:
    compile_all(units([request.param.number]))
    return request.param


def named(architecture: Architecture, names: tuple[str, ...]) -> list[Compiled]:
    chosen = [kernel for kernel in compiled(architecture.number) if kernel.kernel.name in names]
    assert {kernel.kernel.name for kernel in chosen} == set(names)
    return chosen


def narrow(kernel: Compiled, widths: dict[str, list[int]]) -> list[str]:
    """Those of the activations in ``widths`` that are not moved as vectors."""
    moved = [name for name in kernel.activations if name in widths]
    assert moved, f"{kernel}: none of {kernel.activations} is moved"
    return [name for name in moved if min(widths[name]) < VECTOR]


def check_rows(architecture: Architecture, problem: Callable[[Row, Row], str | None]) -> None:
    """``problem(row, limit)`` for every kernel: the message, or None where nothing is wrong."""
    limits = read_limits()
    versions = {limit.triton for limit in limits.values()}
    if versions != {triton_version()}:
        pytest.skip(f"limits.csv is of Triton {', '.join(versions)}, this is {triton_version()}: no two compile alike")
    rows = [(row, limits.get((architecture.number, row.kernel))) for row in report(architecture)]
    found = [
        f"{row.kernel}: {message}" for row, limit in rows if limit is not None and (message := problem(row, limit))
    ]
    assert not found, "\n".join(["", *found, f"Where it has to be so: {UPDATE}"])


def test_the_table_has_exactly_these_kernels(architecture: Architecture) -> None:
    limits = {kernel for number, kernel in read_limits() if number == architecture.number}
    rows = {row.kernel for row in report(architecture)}
    gone, new = sorted(map(str, limits - rows)), sorted(map(str, rows - limits))
    assert (gone, new) == ([], []), f"after kernels came or went: {UPDATE}"


def test_nothing_spills_or_has_a_stack(architecture: Architecture) -> None:
    found = {
        f"sm_{architecture.number} {kernel}" for kernel in compiled(architecture.number) if kernel.stack or kernel.local
    }
    assert sorted(found) == []


def test_registers(architecture: Architecture) -> None:
    def problem(row: Row, limit: Row) -> str | None:
        if row.registers <= limit.registers:
            return None
        return f"{row.registers} registers, at most {limit.registers} are allowed"

    check_rows(architecture, problem)


def test_shared_memory(architecture: Architecture) -> None:
    def problem(row: Row, limit: Row) -> str | None:
        if row.shared <= limit.shared:
            return None
        return f"{row.shared} bytes of shared memory, at most {limit.shared} are allowed"

    check_rows(architecture, problem)


def test_shared_memory_fits(architecture: Architecture) -> None:
    allowed = architecture.device.shared_per_block
    assert {str(row.kernel) for row in report(architecture) if row.shared > allowed} == set()


def check_vectors(kernels: list[Compiled], widths: Callable[[Compiled], dict[str, list[int]]]) -> None:
    """Of every tensor of activations, at every shape of B0."""
    found = {str(kernel): narrow(kernel, widths(kernel)) for kernel in kernels}
    assert {kernel: names for kernel, names in found.items() if names} == {}


def test_streaming_kernels_load_vectors(architecture: Architecture) -> None:
    check_vectors(named(architecture, STREAMING), lambda kernel: kernel.loads)


def test_activations_are_stored_as_vectors(architecture: Architecture) -> None:
    check_vectors(named(architecture, WRITING), lambda kernel: kernel.stores)


def test_every_access_to_activations_is_known(architecture: Architecture) -> None:
    """A tensor without one would pass for a tensor of vectors."""
    kernels = named(architecture, STREAMING)
    found = {str(kernel): set(kernel.activations) - {*kernel.loads, *kernel.stores} for kernel in kernels}
    assert {kernel: names for kernel, names in found.items() if names} == {}
