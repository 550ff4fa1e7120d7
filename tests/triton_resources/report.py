"""Registers, shared memory and occupancy of every Triton kernel that B0 launches, beside the limits in limits.csv.

From the repository's folder, where Triton is (no GPU is needed)::

    PYTHONPATH=tests python -m triton_resources.report            # the report as a table
    PYTHONPATH=tests python -m triton_resources.report --update   # and write it to limits.csv
"""

import argparse
import csv
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path

from resources.occupancy import ARCHITECTURES, WARP, Architecture
from triton_resources.toolkit import Compiled, Kernel, TritonError, compile_all, compiled, triton_version, units

LIMITS = Path(__file__).with_name("limits.csv")
UPDATE = "PYTHONPATH=tests python -m triton_resources.report --update"


@dataclass(frozen=True)
class Row:
    """A kernel on an architecture. Registers of a thread and shared memory, in bytes of a block, are the most that any
    of its specialisations to B0's shapes needs; occupancy, in percent, the lowest."""

    triton: str
    architecture: int
    name: str
    dtype: str
    layout: str
    kernel_size: str
    stride: str
    variant: str
    registers: int
    shared: int
    warps: int
    occupancy: float

    @property
    def kernel(self) -> Kernel:
        return Kernel(self.name, self.dtype, self.layout, self.kernel_size, self.stride, self.variant)


def row(architecture: Architecture, kernel: Kernel, specialisations: Iterable[Compiled]) -> Row:
    """What is to be said of all specialisations of a kernel."""
    each = list(specialisations)
    (warps,) = {one.warps for one in each}
    occupancy = min(architecture.occupancy(one.registers, warps * WARP, one.shared) for one in each)
    return Row(
        triton_version(),
        architecture.number,
        *astuple(kernel),
        max(one.registers for one in each),
        max(one.shared for one in each),
        warps,
        round(100 * occupancy, 2),
    )


@cache
def report(architecture: Architecture) -> list[Row]:
    """Every kernel on one architecture, in order."""
    merged: dict[Kernel, list[Compiled]] = {}
    for one in compiled(architecture.number):
        merged.setdefault(one.kernel, []).append(one)
    return [row(architecture, kernel, merged[kernel]) for kernel in sorted(merged)]


def read_limits() -> dict[tuple[int, Kernel], Row]:
    """The checked-in table."""
    with LIMITS.open(newline="") as file:
        rows = [
            Row(
                triton=line["triton"],
                architecture=int(line["architecture"]),
                name=line["name"],
                dtype=line["dtype"],
                layout=line["layout"],
                kernel_size=line["kernel_size"],
                stride=line["stride"],
                variant=line["variant"],
                registers=int(line["registers"]),
                shared=int(line["shared"]),
                warps=int(line["warps"]),
                occupancy=float(line["occupancy"]),
            )
            for line in csv.DictReader(file)
        ]
    return {(row.architecture, row.kernel): row for row in rows}


def write_limits(rows: Iterable[Row]) -> None:
    with LIMITS.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(field.name for field in fields(Row))
        table.writerows(astuple(row) for row in rows)


def formatted(rows: Iterable[Row]) -> Iterator[str]:
    """The table's lines. What is not as checked in stands in the last column."""
    limits = read_limits() if LIMITS.exists() else {}
    yield f"{'sm':>4}  {'kernel':<86}{'regs':>6}{'shared':>8}{'warps':>7}{'occupancy':>11}"
    for row in rows:
        limit = limits.get((row.architecture, row.kernel))
        remark = ""
        if limit is None:
            remark = "new"
        elif (limit.registers, limit.shared) != (row.registers, row.shared):
            remark = f"limits.csv: {limit.registers} registers, {limit.shared} bytes"
        yield (
            f"{row.architecture:>4}  {row.kernel!s:<86}{row.registers:>6}{row.shared:>8}{row.warps:>7}"
            f"{row.occupancy:>9.1f} %  {remark}"
        ).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m triton_resources.report", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--update", action="store_true", help=f"write the table to {LIMITS.name}")
    update = parser.parse_args().update
    try:
        compile_all(units([architecture.number for architecture in ARCHITECTURES]))
        rows = [row for architecture in ARCHITECTURES for row in report(architecture)]
    except TritonError as error:
        raise SystemExit(str(error)) from error
    print("\n".join(formatted(rows)))
    if update:
        write_limits(rows)


if __name__ == "__main__":
    main()
