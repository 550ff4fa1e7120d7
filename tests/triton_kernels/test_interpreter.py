"""The tests' own changes to the interpreter: rounding as compiled kernels round, counting, and another order."""

import torch
import triton
import triton.language as tl

from triton_kernels.interpreter import counted, shuffled


@triton.jit
def narrow(x, out, elements, BLOCK: tl.constexpr):
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + lane, mask=lane < elements, other=0.0)
    tl.store(out + lane, value.to(out.dtype.element_ty), mask=lane < elements)


@triton.jit
def last_program(out):
    tl.store(out, tl.program_id(0))


def test_bfloat16_is_rounded_to_nearest_even() -> None:
    x = torch.cat([torch.randn(1000), torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, torch.inf, -0.0])])
    out = torch.empty_like(x, dtype=torch.bfloat16)
    narrow[(16,)](x, out, x.numel(), BLOCK=64)
    assert torch.equal(out, x.bfloat16())
    wide = torch.empty_like(x)
    narrow[(16,)](out, wide, x.numel(), BLOCK=64)
    assert torch.equal(wide, out.float())


def test_every_byte_is_counted_once() -> None:
    x, out = torch.zeros(1000), torch.zeros(1000, dtype=torch.float16)
    with counted() as traffic:
        narrow[(8,)](x, out, 1000, BLOCK=128)
    rows = {(row.tensor, row.kind): (row.requested, row.sectors) for row in traffic.rows}
    assert rows == {("x", "load"): (4000, 4000), ("out", "store"): (2000, 2016)}
    assert traffic.launches == ["narrow"]


def test_programs_run_in_another_order() -> None:
    last = set()
    for seed in range(8):
        out = torch.empty(1, dtype=torch.int32)
        with shuffled(seed):
            last_program[(5,)](out)
        last.add(int(out))
    assert len(last) > 1
