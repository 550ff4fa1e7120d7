"""Rows of a CSV file: one side of one case each, with everything that is needed to read it years later."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from effnet.bench.cases import Case
from effnet.bench.measure import Result
from effnet.bench.memory import Memory
from effnet.bench.roofline import Roof, Work, work_of
from effnet.bench.stamp import Stamp

_SEPARATOR = ";"


@dataclass(frozen=True)
class Row:
    """One side of one case. None is what was not measured, or does not exist.

    Attributes:
        kind, name, size, batch, image, dtype, mode, threads, device: the case.
        side, family, layout: who computed it; the quickest side of a family counts.
        status: ``ok``, or why there are no times: ``missing``, ``failed``, ``wrong``; ``reason`` says more.
        error, bound: relative to float64, of the tensor that is worst beside its bound.
        calls: in each round's visit.
        median_ms, q1_ms, q3_ms, best_ms: of one call, over the rounds.
        rounds_ms: each round's. Rows of a case have the same rounds, so that they can be compared round by round.
        peak_bytes, step_bytes, saved_bytes: memory of a step: the peak, by how much the step raised it, and what
            autograd held.
        work_bytes, work_flops: what the operator has to move and to compute at least.
        roof_gbs, roof_gflops: what the machine reached with that many threads, copying and multiplying.
        when, machine, capability, versions, load: the stamp.
    """

    kind: str
    name: str
    size: str
    batch: int
    image: int
    dtype: str
    mode: str
    threads: int
    device: str
    side: str
    family: str
    layout: str
    status: str
    reason: str = ""
    error: float | None = None
    bound: float | None = None
    calls: int = 0
    median_ms: float | None = None
    q1_ms: float | None = None
    q3_ms: float | None = None
    best_ms: float | None = None
    rounds_ms: tuple[float, ...] = ()
    peak_bytes: int | None = None
    step_bytes: int | None = None
    saved_bytes: int | None = None
    work_bytes: int | None = None
    work_flops: int | None = None
    roof_gbs: float | None = None
    roof_gflops: float | None = None
    when: str = ""
    machine: str = ""
    capability: str = ""
    versions: str = ""
    load: str = ""

    @property
    def is_error(self) -> bool:
        """Whether the run has failed: a rival that falls over is a remark, one that computes something else is not."""
        return self.status == "wrong" or (self.status == "failed" and self.family == "fused")

    @property
    def group(self) -> tuple[object, ...]:
        """Rows that agree in these are sides of one case, measured together."""
        return (
            self.kind,
            self.name,
            self.size,
            self.batch,
            self.image,
            self.dtype,
            self.mode,
            self.threads,
            self.device,
            self.when,
            self.machine,
        )


def make_row(case: Case, result: Result, stamp: Stamp, memory: Memory | None = None, roof: Roof | None = None) -> Row:
    """The row of one side."""
    work: Work | None = work_of(case)
    return Row(
        **{name: getattr(case, name) for name in ("kind", "name", "size", "batch", "image", "dtype", "mode")},
        threads=case.threads,
        device=case.device,
        side=result.side.name,
        family=result.side.family,
        layout=result.side.layout,
        status=result.status,
        reason=result.reason,
        error=result.error,
        bound=result.bound,
        calls=result.calls,
        **_times(result.seconds),
        peak_bytes=None if memory is None else memory.peak,
        step_bytes=None if memory is None else memory.step,
        saved_bytes=None if memory is None else memory.saved,
        work_bytes=None if work is None else work.bytes,
        work_flops=None if work is None else work.flops,
        roof_gbs=None if roof is None else roof.gbs,
        roof_gflops=None if roof is None else roof.gflops,
        **asdict(stamp),
    )


def _times(seconds: Sequence[float]) -> dict[str, Any]:
    rounds = tuple(float(f"{1e3 * s:.6g}") for s in seconds)
    if not rounds:
        return {}
    first, _, third = quantiles(rounds, n=4, method="inclusive") if len(rounds) > 1 else rounds * 3
    return {
        "median_ms": median(rounds),
        "q1_ms": first,
        "q3_ms": third,
        "best_ms": min(rounds),
        "rounds_ms": rounds,
    }


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append ``rows`` to the file, which begins with the names of the columns."""
    names = [field.name for field in fields(Row)]
    fresh = not path.exists() or path.stat().st_size == 0
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, names)
        if fresh:
            writer.writeheader()
        writer.writerows({name: _cell(getattr(row, name)) for name in names} for row in rows)


def read_rows(path: Path) -> list[Row]:
    """The rows of a file that :func:`write_rows` wrote.

    Raises:
        ValueError: the file has other columns, or a cell is not what its column holds.
    """
    expected = [field.name for field in fields(Row)]
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is None or list(reader.fieldnames) != expected:
            raise ValueError(f"{path}: expected the columns {', '.join(expected)}, got {reader.fieldnames}")
        return [_row(path, reader.line_num, cells) for cells in reader]


_PARSERS = {
    int: int,
    int | None: lambda text: int(text) if text else None,
    float | None: lambda text: float(text) if text else None,
    str: str,
    tuple[float, ...]: lambda text: tuple(map(float, text.split(_SEPARATOR))) if text else (),
}


def _row(path: Path, line: int, cells: dict[str, str]) -> Row:
    values: dict[str, Any] = {}
    for field in fields(Row):
        try:
            values[field.name] = _PARSERS[field.type](cells[field.name])  # type: ignore[index, operator]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {line}: {field.name}: {error}") from error
    return Row(**values)


def _cell(value: object) -> object:
    if isinstance(value, tuple):
        return _SEPARATOR.join(map(str, value))
    return "" if value is None else value
