"""The arithmetic of the report, which needs no compiler."""

import pytest

from resources.occupancy import ARCHITECTURES
from resources.report import Kernel, b0_shapes, read_limits
from resources.toolkit import ToolkitError, parse

SM80, SM90, SM100 = ARCHITECTURES

# Registers, threads, shared bytes of a block, occupancy on sm_90: each bound in turn is the one that counts.
BOUNDS = [
    (32, 256, 0, 1.0),
    (32, 32, 0, 0.5),  # 32 blocks
    (64, 256, 0, 0.5),
    (65, 256, 0, 0.375),  # 72 registers are allocated: 7 warps a partition, three blocks of 8
    (255, 256, 0, 0.125),
    (32, 256, 227 * 1024, 0.125),
    (32, 256, 113 * 1024, 0.25),  # with what is reserved exactly half
    (32, 256, 113 * 1024 + 1, 0.125),
    (40, 192, 0, 0.75),  # whole blocks only
]


@pytest.mark.parametrize(("registers", "threads", "shared", "expected"), BOUNDS)
def test_occupancy(registers: int, threads: int, shared: int, expected: float) -> None:
    assert SM90.occupancy(registers, threads, shared) == expected


def test_architectures_differ_in_shared_memory() -> None:
    assert [architecture.occupancy(32, 256, 54 * 1024) for architecture in ARCHITECTURES] == [0.25, 0.5, 0.5]


def test_a_block_that_does_not_fit() -> None:
    assert SM80.occupancy(32, 256, 164 * 1024) == 0


def test_names() -> None:
    prefix = "_ZN14effnet_kernels4cuda"
    mangled = prefix + "24depthwise_forward_kernelINS_8BFloat16ELNS_6LayoutE1ELi5ELi2EEEvNS0_22DepthwiseForwardParamsE"
    assert Kernel.of(mangled) == Kernel("depthwise_forward", "bfloat16", "channels_last", "5", "2")
    assert str(Kernel.of(mangled)) == "depthwise_forward bfloat16 channels_last 5×5/2"
    streaming = prefix + "16normalize_kernelIfLNS_6LayoutE0EEEvNS0_15NormalizeParamsE"
    assert Kernel.of(streaming) == Kernel("normalize", "float32", "nchw")
    assert Kernel.of(prefix + "13excite_kernelENS0_12ExciteParamsE") == Kernel("excite")
    with pytest.raises(ToolkitError, match="which kernel"):
        Kernel.of(prefix + "6kernelIdEvv")


def test_what_ptxas_and_the_disassembler_say_is_read() -> None:
    usage = """ptxas info    : Compiling entry function '_Z1fv' for 'sm_90'
ptxas info    : Function properties for _Z1fv
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 50 registers, used 1 barriers, 8 bytes cumulative stack size, 1024 bytes smem
"""
    code = """	.section	.text._Z1fv,"ax",@progbits
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128.STRONG.SM R4, desc[UR4][R2.64] ;
        /*0020*/             @!UP0 LDG.E.STRONG.SM R4, desc[UR4][R2.64] ;
"""
    kernel = parse(usage, code)["_Z1fv"]
    assert (kernel.registers, kernel.shared) == (50, 1024)
    assert (kernel.stack, kernel.spill_stores, kernel.spill_loads) == (8, 4, 12)
    assert kernel.instructions == {"LDC": 1, "LDG.E.128.STRONG.SM": 1, "LDG.E.STRONG.SM": 1}
    with pytest.raises(ToolkitError, match="cannot read"):
        parse(usage, "")


def test_shapes() -> None:
    """B0's own, from the stem to the head."""
    shapes = b0_shapes()
    assert {"stream 32 12544", "stream 1280 49", "stream 1152 49", "excite 32 8"} <= set(shapes)
    assert {"depthwise 96 112 112 3 2 56 56 1 1", "depthwise 672 14 14 5 2 7 7 2 2"} <= set(shapes)


def test_limits_are_of_all_architectures() -> None:
    assert {architecture for architecture, _ in read_limits()} == {a.number for a in ARCHITECTURES}
