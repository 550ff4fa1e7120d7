"""The host runtime itself: kernels that are right run and are counted exactly; kernels with a bug are caught."""

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from hostcuda.build import FOLDER, build, sanitizers_loaded, why_not

SEEDS = range(8)
Launch = Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def planted() -> ModuleType:
    """The planted kernels; where they cannot be built the tests skip, with the reason, and in CI they fail."""
    reason = why_not()
    if reason is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no host runtime: {reason}")
        pytest.skip(f"no host runtime: {reason}")
    return build("planted", [FOLDER / "planted.cpp"], sanitize=sanitizers_loaded())


@pytest.fixture
def launch(planted: ModuleType) -> Launch:
    """Launches a planted kernel over ``x`` and returns what it wrote into a tensor full of NaN."""
    planted.withdraw_all()
    planted.reset_launches()
    planted.set_device()
    planted.seed(0)

    def launched(
        name: str,
        x: torch.Tensor,
        outputs: int,
        *,
        grid: tuple[int, ...] = (1,),
        block: tuple[int, ...] = (32,),
        shared_bytes: int = 0,
        opt_in: int | None = None,
        n: int | None = None,
        named: bool = True,
    ) -> torch.Tensor:
        out = torch.full((outputs,), torch.nan)
        planted.announce("x", x.data_ptr(), x.nbytes, False)
        planted.announce("out", out.data_ptr(), out.nbytes, True)
        try:
            planted.launch(
                name,
                grid=(*grid, 1, 1)[:3],
                block=(*block, 1, 1)[:3],
                shared_bytes=shared_bytes,
                opt_in=opt_in,
                input=x.data_ptr(),
                output=out.data_ptr(),
                n=x.numel() if n is None else n,
                named=named,
            )
        finally:
            planted.withdraw_all()
        return out

    return launched


def counted(planted: ModuleType) -> dict[str, Any]:
    record: dict[str, Any]
    (record,) = planted.launches()
    planted.reset_launches()
    return record


def traffic(**changed: int) -> dict[str, int]:
    names = ("read_bytes", "read_sectors", "written_bytes", "written_sectors", "wide_accesses", "narrow_accesses")
    return {**dict.fromkeys(names, 0), **changed}


def transposed(launch: Launch, name: str, x: torch.Tensor) -> torch.Tensor:
    n = x.shape[0]
    tiles = (n + 31) // 32
    return launch(name, x, n * n, grid=(tiles, tiles), block=(32, 8), n=n).view(n, n)


@pytest.mark.parametrize("seed", SEEDS)
def test_transpose(planted: ModuleType, launch: Launch, seed: int) -> None:
    planted.seed(seed)
    x = torch.randn(72, 72)
    assert transposed(launch, "transpose", x).equal(x.t())
    record = counted(planted)
    assert (record["kernel"], record["grid"], record["block"]) == ("transpose", (3, 3, 1), (32, 8, 1))
    once = 72 * 72
    assert record["buffers"] == {
        "x": traffic(read_bytes=4 * once, read_sectors=once // 8, narrow_accesses=once),
        "out": traffic(written_bytes=4 * once, written_sectors=once // 8, narrow_accesses=once),
    }


def test_missing_barrier(planted: ModuleType, launch: Launch) -> None:
    x = torch.randn(64, 64)
    wrong = []
    for seed in SEEDS:
        planted.seed(seed)
        out = transposed(launch, "transpose_unsynchronised", x)
        assert out.isnan().any() or out.equal(x.t())
        wrong.append(not out.equal(x.t()))
    assert all(wrong)


@pytest.mark.parametrize("seed", SEEDS)
def test_block_sum(planted: ModuleType, launch: Launch, seed: int) -> None:
    planted.seed(seed)
    x = torch.arange(1500.0)
    out = launch("block_sum", x, 3, grid=(3,), block=(128,), shared_bytes=16)
    assert out.equal(torch.stack([part.sum() for part in x.split(512)]))
    record = counted(planted)
    assert record["dynamic_shared_bytes"] == 16
    assert record["buffers"] == {
        "x": traffic(read_bytes=6000, read_sectors=188, wide_accesses=375),
        "out": traffic(written_bytes=12, written_sectors=1, narrow_accesses=3),
    }


def test_sectors_are_counted_anew_in_every_launch(planted: ModuleType, launch: Launch) -> None:
    x, out = torch.arange(64.0), torch.zeros(1)
    planted.announce("x", x.data_ptr(), x.nbytes, False)
    planted.announce("out", out.data_ptr(), out.nbytes, True)
    arguments = {"grid": (1, 1, 1), "block": (32, 1, 1), "shared_bytes": 4, "opt_in": None, "named": False}
    # More launches than the numbers that mark a sector as touched.
    for _ in range(600):
        planted.launch("block_sum", input=x.data_ptr(), output=out.data_ptr(), n=64, **arguments)
    records = planted.launches()
    assert len(records) == 600 and all(record == records[0] for record in records)
    assert records[0]["buffers"]["x"]["read_sectors"] == 8
    planted.withdraw_all()


@pytest.mark.parametrize("width", [4, 8, 16, 32])
def test_warp_operations(launch: Launch, width: int) -> None:
    def group(lane: int) -> int:
        return lane - lane % width

    out = launch("warp_operations", torch.arange(32.0), 256, n=width).view(8, 32).int().tolist()
    lanes = range(32)
    assert out[0] == [group(lane) + (lane + 3) % width for lane in lanes]
    assert out[1] == [lane - 2 if lane - 2 >= group(lane) else lane for lane in lanes]
    assert out[2] == [lane + 3 if lane + 3 < group(lane) + width else lane for lane in lanes]
    assert out[3] == [lane ^ 5 if lane ^ 5 < group(lane) + width else lane for lane in lanes]
    assert out[4:] == [[expected] * 32 for expected in (width, width // 2 + 1, int(width < 32), int(width == 32))]


@pytest.mark.parametrize("seed", SEEDS)
def test_warp_halves(planted: ModuleType, launch: Launch, seed: int) -> None:
    planted.seed(seed)
    lower = [lane + min(lane + 1, 15) for lane in range(16)]
    upper = [lane ^ 1 for lane in range(16, 32)]
    halves = [*lower, *upper]
    expected = [mine + other for mine, other in zip(halves, reversed(halves), strict=True)]
    assert launch("warp_halves", torch.arange(32.0), 32).tolist() == expected


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [4, 256, 1000])
def test_pipeline(planted: ModuleType, launch: Launch, n: int, seed: int) -> None:
    planted.seed(seed)
    x = torch.randn(n)
    assert launch("pipelined", x, n, block=(64,), shared_bytes=2 * 64 * 16).equal(2 * x)
    # What the copies fill with zeros is not read.
    buffers = counted(planted)["buffers"]
    assert buffers["x"] == traffic(read_bytes=4 * n, read_sectors=-(-n // 8), wide_accesses=n // 4)
    assert buffers["out"] == traffic(written_bytes=4 * n, written_sectors=-(-n // 8), wide_accesses=n // 4)


@pytest.mark.parametrize("name", ["pipelined_waiting_late", "pipelined_unwaited"])
def test_missing_wait(launch: Launch, name: str) -> None:
    assert launch(name, torch.randn(1024), 1024, block=(64,), shared_bytes=2 * 64 * 16).isnan().any()


def test_half_types(launch: Launch) -> None:
    x = torch.randn(100)
    out = launch("rounded", x, 100, grid=(4,))
    assert out[0::2].equal(x[0::2].half().float())
    assert out[1::2].equal(x[1::2].bfloat16().float())


@pytest.mark.parametrize("length", [4, 8])
def test_uninitialised_shared_memory_is_nan(launch: Launch, length: int) -> None:
    for _ in range(2):
        static, dynamic = launch(f"uninitialised_{length}", torch.zeros(1), 64, grid=(3,), shared_bytes=128).split(32)
        assert static.isnan().tolist() == [lane % length != 0 for lane in range(32)]
        assert dynamic.isnan().tolist() == [lane != 0 for lane in range(32)]


PLANTED: dict[str, tuple[dict[str, Any], str]] = {
    "read_past": (
        {"block": (128,)},
        r", thread \(100, 0, 0\): global read of 4 bytes at planted.cuh:\d+ is out of bounds: "
        r"nearest is buffer 'x' of 400 bytes, offset 400",
    ),
    "write_past": (
        {"block": (128,)},
        r", thread \(100, 0, 0\): global write of 4 bytes at planted.cuh:\d+ is out of bounds: "
        r"nearest is buffer 'out' of 400 bytes, offset 400",
    ),
    "write_input": ({}, r"global write of 4 bytes at planted.cuh:\d+ to a read-only buffer: buffer 'x' of 400 bytes"),
    "misaligned_global": (
        {},
        r"global read of 16 bytes at planted.cuh:\d+ is misaligned, 4 past a multiple of 16: "
        r"buffer 'x' of 400 bytes, offset 4",
    ),
    "misaligned_shared": (
        {"shared_bytes": 64},
        r"shared memory access of 16 bytes at planted.cuh:\d+ is misaligned: its address is 8 past a multiple of 16",
    ),
    "shared_read_past": (
        {"shared_bytes": 64, "n": 16},
        r"shared memory access of 4 bytes at planted.cuh:\d+ is out of bounds: "
        r"it begins at offset 64 of the block's 64 dynamic bytes",
    ),
    "shared_write_past": (
        {"shared_bytes": 64, "n": 16},
        "shared memory was written out of bounds, 0 bytes past its 64 dynamic bytes",
    ),
    "early_return": (
        {"n": 31, "block": (64,)},
        r"divergent __syncthreads at planted.cuh:\d+: 31 of 64 threads wait, 33 have exited, "
        r"the first of them thread \(31, 0, 0\)",
    ),
    "barrier_in_branch": (
        {"n": 16},
        r"divergent __syncthreads: it waits at planted.cuh:\d+, thread \(\d+, 0, 0\) at planted.cuh:\d+",
    ),
    "barrier_against_warp": (
        {"n": 16},
        r"__syncwarp with mask 0xffffffff at planted.cuh:\d+ waits for lane 0 of warp 0, "
        r"which waits in __syncthreads at planted.cuh:\d+",
    ),
    "missing_lane": (
        {"n": 37, "block": (64,)},
        r"__shfl_xor_sync with mask 0xffffffff at planted.cuh:\d+ waits for lane 5 of warp 1, which has exited",
    ),
    "inactive_lane": (
        {"n": 20},
        r"__shfl_sync with mask 0x0000ffff at planted.cuh:\d+: lane 0 reads from lane 20, which takes no part",
    ),
    "unnamed_lane": (
        {"block": (1,)},
        "__syncwarp with mask 0x0000fffe at .*: the mask does not name lane 0, which calls it",
    ),
    "block_sum": (
        {"block": (48,), "shared_bytes": 64},
        "__shfl_xor_sync .* waits for lane 16 of warp 1, which the block does not have",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bug(launch: Launch, name: str) -> None:
    if name == "shared_write_past" and sanitizers_loaded():
        pytest.skip("AddressSanitizer sees it first, and ends the process")
    arguments, message = PLANTED[name]
    for _ in range(3):
        with pytest.raises(RuntimeError, match=rf"^{name}, block \(0, 0, 0\).*{message}"):
            launch(name, torch.zeros(100), 100, **arguments)
        # The runtime is as usable as before.
        x = torch.randn(32, 32)
        assert transposed(launch, "transpose", x).equal(x.t())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "threads": (
        {"block": (33, 32)},
        r"block \(33, 32, 1\) has 1056 threads: at most \(1024, 1024, 64\) and 1024 in all",
    ),
    "depth": ({"block": (1, 1, 65)}, r"block \(1, 1, 65\) has 65 threads: at most"),
    "empty block": ({"block": (0,)}, r"block \(0, 1, 1\) is empty"),
    "empty grid": ({"grid": (4, 0)}, r"grid \(4, 0, 1\) is empty"),
    "grid": ({"grid": (1, 65536)}, r"grid \(1, 65536, 1\) is too large"),
    "no opt-in": ({"shared_bytes": 49156}, "49156 bytes of dynamic shared memory: above 49152 cudaFuncSetAttribute"),
    "small opt-in": ({"shared_bytes": 65540, "opt_in": 65536}, "65540 bytes of dynamic shared memory: above 65536"),
    "shared memory": ({"shared_bytes": 232449}, "232449 bytes of dynamic shared memory: the device has at most 232448"),
}


@pytest.mark.parametrize("limit", REFUSED)
def test_refused_launch(planted: ModuleType, launch: Launch, limit: str) -> None:
    arguments, message = REFUSED[limit]
    with pytest.raises(RuntimeError, match=f"^transpose: {message}"):
        launch("transpose", torch.zeros(1), 1, **arguments)
    assert planted.launches() == []


def test_opt_in(launch: Launch) -> None:
    x = torch.arange(128.0)
    assert launch("block_sum", x, 1, shared_bytes=232448, opt_in=232448).item() == x.sum()
    with pytest.raises(ValueError, match="cudaErrorInvalidValue"):
        launch("block_sum", x, 1, opt_in=232449)


def test_most_threads(launch: Launch) -> None:
    x = torch.arange(4096.0)
    assert launch("block_sum", x, 1, block=(1024,), shared_bytes=128).item() == x.sum()


def test_device(planted: ModuleType, launch: Launch) -> None:
    assert planted.multiprocessors() == 132
    planted.set_device(multiprocessors=80, shared_memory_per_block_optin=65536)
    assert planted.multiprocessors() == 80
    with pytest.raises(RuntimeError, match="the device has at most 65536"):
        launch("transpose", torch.zeros(1), 1, shared_bytes=65540)
    with pytest.raises(ValueError, match="no limit 'wings'"):
        planted.set_device(wings=2)


def test_kernel_without_a_name(planted: ModuleType, launch: Launch) -> None:
    launch("rounded", torch.zeros(32), 32, named=False)
    assert counted(planted)["kernel"] == "kernel void (float const*, float*, int)"


def test_memset(planted: ModuleType, launch: Launch) -> None:
    x = torch.ones(64)
    with pytest.raises(RuntimeError, match="no buffer is announced"):
        planted.fill(x.data_ptr(), 0, x.nbytes)
    planted.announce("x", x.data_ptr(), x.nbytes, True)
    planted.fill(x.data_ptr(), 0, x.nbytes)
    assert not x.any()
    assert counted(planted)["buffers"] == {"x": traffic(written_bytes=256, written_sectors=8)}


def test_announced_twice(planted: ModuleType, launch: Launch) -> None:
    x = torch.zeros(64)
    planted.announce("x", x.data_ptr(), x.nbytes, False)
    planted.announce("y", x.data_ptr(), x.nbytes, True)
    planted.fill(x.data_ptr(), 0, 4)
    assert list(counted(planted)["buffers"]) == ["y"]
    with pytest.raises(RuntimeError, match="'z' overlaps 'y', which was announced before and not withdrawn"):
        planted.announce("z", x[1:].data_ptr(), x[1:].nbytes, True)


def test_why_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert why_not() == f"there is no include/cuda_fp16.h in CUDA_HOME={tmp_path}"
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert why_not() == "no C++ compiler: no-such-compiler was not found on PATH"
