"""What the resource table makes of specialisations, and that it is of all that is compiled; nothing is compiled."""

from typing import Any

from resources.occupancy import ARCHITECTURES
from triton_resources.report import read_limits, row
from triton_resources.toolkit import DTYPES, Compiled, Kernel, units


def specialisation(**resources: Any) -> Compiled:
    facts = {"registers": 32, "shared": 0, "warps": 8, "stack": 0, "local": 0, "loads": {}, "stores": {}}
    return Compiled(Kernel("normalize", "bfloat16", "nchw"), "", ["16×8×8", "8×4×4"], ["x"], **{**facts, **resources})


def test_a_row_is_the_worst_of_its_specialisations() -> None:
    each = [specialisation(registers=64), specialisation(shared=113 * 1024 + 1)]
    found = row(ARCHITECTURES[1], each[0].kernel, each)
    assert (found.registers, found.shared, found.warps) == (64, 113 * 1024 + 1, 8)
    assert found.occupancy == 12.5
    assert found.kernel == each[0].kernel


def test_names() -> None:
    kernel = Kernel("depthwise_forward", "bfloat16", "nchw", "5", "2", "identity moments 4x8x32")
    assert str(kernel) == "depthwise_forward bfloat16 nchw 5×5/2 identity moments 4x8x32"
    assert str(Kernel("merge_parts", variant="64")) == "merge_parts 64"
    assert str(specialisation()) == "normalize bfloat16 nchw on 16×8×8, 8×4×4"


def test_architectures_are_those_of_the_cuda_kernels() -> None:
    assert sorted(DTYPES) == [architecture.number for architecture in ARCHITECTURES]


def test_limits_are_of_all_that_is_compiled() -> None:
    found = {(number, kernel.dtype) for number, kernel in read_limits() if kernel.dtype}
    assert found == set(units(sorted(DTYPES)))
