"""Registers, shared memory and occupancy of every CUDA kernel, beside the limits in limits.csv.

From the repository's folder, where CUDA's compiler is::

    PYTHONPATH=tests python -m resources.report            # the report as a table
    PYTHONPATH=tests python -m resources.report --update   # and write it to limits.csv
"""

import argparse
import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path

from effnet.config import find_variant
from effnet_kernels.arguments import KERNEL_SIZES, output_size, symmetric_padding
from resources.occupancy import ARCHITECTURES, Architecture
from resources.toolkit import Compiled, Toolkit, ToolkitError, build_program, compile_kernels, find_toolkit, run

LIMITS = Path(__file__).with_name("limits.csv")
UPDATE = "PYTHONPATH=tests python -m resources.report --update"

_DTYPES = {"f": "float32", "NS_4HalfE": "float16", "NS_8BFloat16E": "bfloat16"}
_LAYOUTS = {"0": "nchw", "1": "channels_last"}
_MANGLED = re.compile(
    r"_ZN14effnet_kernels4cuda(?P<length>\d+)(?P<name>\w+?)_kernel"
    r"(?:I(?P<dtype>f|NS_4HalfE|NS_8BFloat16E)LNS_6LayoutE(?P<layout>[01])E(?:Li(?P<size>\d)ELi(?P<stride>\d)E)?)?E"
)


@dataclass(frozen=True, order=True)
class Kernel:
    """An instantiation; what it is no template of is empty."""

    name: str
    dtype: str = ""
    layout: str = ""
    kernel_size: str = ""
    stride: str = ""

    @classmethod
    def of(cls, mangled: str) -> "Kernel":
        found = _MANGLED.match(mangled)
        if found is None or len(found["name"]) + len("_kernel") != int(found["length"]):
            raise ToolkitError(f"cannot tell which kernel this is: {mangled}")
        return cls(
            found["name"],
            _DTYPES[found["dtype"]] if found["dtype"] else "",
            _LAYOUTS[found["layout"]] if found["layout"] else "",
            found["size"] or "",
            found["stride"] or "",
        )

    def __str__(self) -> str:
        tile = f"{self.kernel_size}×{self.kernel_size}/{self.stride}" if self.kernel_size else ""
        return " ".join(part for part in (self.name, self.dtype, self.layout, tile) if part)


@dataclass(frozen=True)
class Row:
    """A kernel on an architecture. Shared memory, in bytes of a block, is the most that any of B0's shapes asks for;
    occupancy, in percent, the lowest."""

    nvcc: str
    architecture: int
    name: str
    dtype: str
    layout: str
    kernel_size: str
    stride: str
    threads: int
    registers: int
    static_shared: int
    dynamic_shared: int
    occupancy: float

    @property
    def kernel(self) -> Kernel:
        return Kernel(self.name, self.dtype, self.layout, self.kernel_size, self.stride)


def b0_shapes() -> list[str]:
    """Every tensor of EfficientNet-B0 that a kernel runs on, as lines for launches.cu.

    A kernel size that B0 does not have is planned for all of its depthwise tensors.
    """
    lines: dict[str, None] = {}

    def stream(channels: int, side: int) -> None:
        lines[f"stream {channels} {side * side}"] = None

    def depthwise(channels: int, side: int, size: int, stride: int) -> int:
        pad = symmetric_padding(size)[0]
        out = output_size(side, size, stride, 2 * pad)
        lines[f"depthwise {channels} {side} {side} {size} {stride} {out} {out} {pad} {pad}"] = None
        return out

    variant = find_variant("efficientnet_b0")
    blocks = [block for stage in variant.blocks() for block in stage]
    own_sizes = {block.kernel_size for block in blocks}
    side = variant.resolution // 2
    stream(variant.scaled_stem_channels, side)
    for block in blocks:
        stream(block.expanded_channels, side)
        for size in KERNEL_SIZES:
            if size not in own_sizes:
                depthwise(block.expanded_channels, side, size, 1)
                depthwise(block.expanded_channels, side, size, 2)
        side = depthwise(block.expanded_channels, side, block.kernel_size, block.stride)
        stream(block.expanded_channels, side)
        lines[f"excite {block.expanded_channels} {block.squeezed_channels}"] = None
        stream(block.out_channels, side)
    stream(variant.scaled_head_channels, side)
    return list(lines)


def launches(toolkit: Toolkit, architecture: Architecture) -> dict[Kernel, set[tuple[int, int]]]:
    """Threads and dynamic shared memory of every launch at B0's shapes."""
    wrapped = ("__cudaRegisterFunction", "cudaFuncSetAttribute", "cudaLaunchKernelExC")
    options = ",".join(f"--wrap={name}" for name in wrapped)
    program = build_program(toolkit, Path(__file__).with_name("launches.cu"), "-Xlinker", options)
    device = architecture.device
    limits = (device.multiprocessors, device.shared_per_block, device.shared_per_multiprocessor)
    found: dict[Kernel, set[tuple[int, int]]] = {}
    for line in run([program, *map(str, limits)], "\n".join(b0_shapes())).splitlines():
        mangled, threads, shared = line.split()
        found.setdefault(Kernel.of(mangled), set()).add((int(threads), int(shared)))
    return found


@cache
def compiled(architecture: Architecture) -> dict[Kernel, Compiled]:
    kernels = compile_kernels(find_toolkit(), architecture.number)
    return {Kernel.of(mangled): kernel for mangled, kernel in kernels.items()}


@cache
def report(architecture: Architecture) -> list[Row]:
    """Every kernel on one architecture, in order."""
    toolkit = find_toolkit()
    planned = launches(toolkit, architecture)
    rows = []
    for kernel, resources in sorted(compiled(architecture).items(), key=lambda item: item[0]):
        if kernel not in planned:
            raise ToolkitError(f"{kernel}: no launch at B0's shapes; add one to launches.cu")
        occupancy, threads = min(
            (architecture.occupancy(resources.registers, threads, resources.shared + shared), threads)
            for threads, shared in planned[kernel]
        )
        rows.append(
            Row(
                nvcc=toolkit.version,
                architecture=architecture.number,
                name=kernel.name,
                dtype=kernel.dtype,
                layout=kernel.layout,
                kernel_size=kernel.kernel_size,
                stride=kernel.stride,
                threads=threads,
                registers=resources.registers,
                static_shared=resources.shared,
                dynamic_shared=max(shared for _, shared in planned[kernel]),
                occupancy=round(100 * occupancy, 2),
            )
        )
    return rows


def read_limits() -> dict[tuple[int, Kernel], Row]:
    """The checked-in table."""
    with LIMITS.open(newline="") as file:
        rows = [
            Row(
                nvcc=row["nvcc"],
                architecture=int(row["architecture"]),
                name=row["name"],
                dtype=row["dtype"],
                layout=row["layout"],
                kernel_size=row["kernel_size"],
                stride=row["stride"],
                threads=int(row["threads"]),
                registers=int(row["registers"]),
                static_shared=int(row["static_shared"]),
                dynamic_shared=int(row["dynamic_shared"]),
                occupancy=float(row["occupancy"]),
            )
            for row in csv.DictReader(file)
        ]
    return {(row.architecture, row.kernel): row for row in rows}


def write_limits(rows: Iterable[Row]) -> None:
    with LIMITS.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(field.name for field in fields(Row))
        table.writerows(astuple(row) for row in rows)


def formatted(rows: Iterable[Row]) -> Iterator[str]:
    """The table's lines. What is not as it should be, or not as checked in, stands in the last column."""
    limits = read_limits() if LIMITS.exists() else {}
    yield f"{'sm':>4}  {'kernel':<49}{'threads':>8}{'regs':>6}{'static':>8}{'dynamic':>9}{'occupancy':>11}"
    for row in rows:
        limit = limits.get((row.architecture, row.kernel))
        resources = compiled(next(a for a in ARCHITECTURES if a.number == row.architecture))[row.kernel]
        remarks = []
        if resources.stack or resources.spill_stores or resources.spill_loads:
            remarks.append(f"stack {resources.stack}, spills {resources.spill_stores} + {resources.spill_loads}")
        if limit is None:
            remarks.append("new")
        elif (limit.registers, limit.occupancy) != (row.registers, row.occupancy):
            remarks.append(f"limits.csv: {limit.registers} registers, {limit.occupancy:g} %")
        yield (
            f"{row.architecture:>4}  {row.kernel!s:<49}{row.threads:>8}{row.registers:>6}{row.static_shared:>8}"
            f"{row.dynamic_shared:>9}{row.occupancy:>9.1f} %  {'; '.join(remarks)}"
        ).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m resources.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--update", action="store_true", help=f"write the table to {LIMITS.name}")
    update = parser.parse_args().update
    rows = []
    try:
        for architecture in ARCHITECTURES:
            rows += report(architecture)
    except ToolkitError as error:
        raise SystemExit(str(error)) from error
    print("\n".join(formatted(rows)))
    if update:
        write_limits(rows)


if __name__ == "__main__":
    main()
