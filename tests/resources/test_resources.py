"""No kernel may need more of a GPU than limits.csv says, on any architecture; each is compiled once."""

from collections.abc import Callable

import pytest

from resources.occupancy import ARCHITECTURES, Architecture
from resources.report import UPDATE, Kernel, Row, compiled, read_limits, report
from resources.toolkit import CSRC, Compiled, Toolkit, compile_kernels

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STREAMING = ("statistics", "normalize", "backward_sums", "input_gradient", "pool")
DEPTHWISE = ("depthwise_forward", "depthwise_backward")
# Those that write activations.
WRITING = ("normalize", "input_gradient", *DEPTHWISE)

VECTOR_LOAD = r"LDG\.E\.(?:\w+\.)*128(?:\.\w+)*"
VECTOR_STORE = r"STG\.E\.(?:\w+\.)*128(?:\.\w+)*"
VECTOR_COPY = r"LDGSTS\.E\.(?:\w+\.)*128(?:\.\w+)*"
SHARED_VECTOR_STORE = r"STS\.128"


@pytest.fixture(params=ARCHITECTURES, ids=lambda a: f"sm_{a.number}", scope="module")
def architecture(request: pytest.FixtureRequest, toolkit: Toolkit) -> Architecture:
    return request.param


def check_rows(architecture: Architecture, problem: Callable[[Row, Row], str | None]) -> None:
    """``problem(row, limit)`` for every kernel: the message, or None where nothing is wrong."""
    limits = read_limits()
    rows = [(row, limits.get((architecture.number, row.kernel))) for row in report(architecture)]
    found = [
        f"{row.kernel}: {message} (limits.csv is of nvcc {limit.nvcc}, this is {row.nvcc})"
        for row, limit in rows
        if limit is not None and (message := problem(row, limit))
    ]
    assert not found, "\n".join(["", *found, f"Where it has to be so: {UPDATE}"])


def check_instructions(kernels: dict[Kernel, Compiled], names: tuple[str, ...], pattern: str) -> None:
    chosen = {kernel: code for kernel, code in kernels.items() if kernel.name in names}
    assert {kernel.name for kernel in chosen} == set(names)
    assert [str(kernel) for kernel, code in chosen.items() if code.count(pattern) == 0] == []


def test_the_table_has_exactly_these_kernels(architecture: Architecture) -> None:
    limits = {kernel for number, kernel in read_limits() if number == architecture.number}
    rows = {row.kernel for row in report(architecture)}
    assert rows == limits, f"after a kernel came or went: {UPDATE}"


def test_nothing_spills_or_has_a_stack(architecture: Architecture) -> None:
    found = {
        str(kernel): f"stack {code.stack}, spills {code.spill_stores} + {code.spill_loads} bytes"
        for kernel, code in compiled(architecture).items()
        if code.stack or code.spill_stores or code.spill_loads
    }
    assert found == {}


def test_registers(architecture: Architecture) -> None:
    def problem(row: Row, limit: Row) -> str | None:
        if row.registers <= limit.registers:
            return None
        return f"{row.registers} registers, at most {limit.registers} are allowed"

    check_rows(architecture, problem)


def test_depthwise_occupancy(architecture: Architecture) -> None:
    def problem(row: Row, limit: Row) -> str | None:
        if row.name not in DEPTHWISE or row.occupancy >= limit.occupancy:
            return None
        return f"occupancy {row.occupancy:g} %, at least {limit.occupancy:g} % is expected"

    check_rows(architecture, problem)


def test_streaming_occupancy(architecture: Architecture) -> None:
    """Half of all warps is what hides memory's latency at the number of loads that each has in flight."""
    rows = [row for row in report(architecture) if row.name in STREAMING]
    assert {row.name for row in rows} == set(STREAMING)
    assert {str(row.kernel): row.occupancy for row in rows if row.occupancy < 50} == {}


def test_shared_memory_fits(architecture: Architecture) -> None:
    allowed = architecture.device.shared_per_block
    rows = report(architecture)
    assert {str(row.kernel) for row in rows if row.static_shared + row.dynamic_shared > allowed} == set()


def test_streaming_kernels_load_vectors(architecture: Architecture) -> None:
    check_instructions(compiled(architecture), STREAMING, VECTOR_LOAD)


def test_activations_are_stored_as_vectors(architecture: Architecture) -> None:
    check_instructions(compiled(architecture), WRITING, VECTOR_STORE)


def test_depthwise_kernels_copy_vectors_asynchronously(architecture: Architecture) -> None:
    check_instructions(compiled(architecture), DEPTHWISE, VECTOR_COPY)


@pytest.mark.parametrize("source", ["forward_float16", "backward_float16"])
def test_depthwise_kernels_copy_vectors_on_sm_75(source: str, toolkit: Toolkit) -> None:
    """Which has no asynchronous copies: a load and a store."""
    name = f"depthwise_{source.partition('_')[0]}"
    files = [CSRC / f"depthwise_conv_bn_act/{source}.cu"]
    kernels = {Kernel.of(mangled): code for mangled, code in compile_kernels(toolkit, 75, files).items()}
    check_instructions(kernels, (name,), VECTOR_LOAD)
    check_instructions(kernels, (name,), SHARED_VECTOR_STORE)
    assert [str(kernel) for kernel, code in kernels.items() if code.count(VECTOR_COPY)] == []
    assert [str(kernel) for kernel, code in kernels.items() if code.stack or code.spill_loads] == []
