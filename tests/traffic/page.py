"""The tables of docs/performance.md: each stands between two comments that name it, and is made by a function here."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from traffic import budget, eager
from traffic.count import LAYOUTS, Launch, core
from traffic.shapes import B0, BATCH, FIRST, Shape

PATH = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
DTYPE = torch.bfloat16
DEVICES = {"A100 SXM 80 GB": 2039, "H100 SXM": 3350, "RTX 4090": 1008}
"""Memory bandwidth in GB/s, from the manufacturer's data sheets."""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.1f}"


def _roofline() -> str:
    totals = dict.fromkeys(DEVICES, 0.0)
    rows = []
    everything = 0
    for shape, blocks in B0.items():
        least = budget.block(shape).bytes(shape, BATCH, DTYPE.itemsize)
        times = {name: least / (bandwidth * 1e3) for name, bandwidth in DEVICES.items()}  # µs
        everything += blocks * least
        totals = {name: totals[name] + blocks * times[name] for name in DEVICES}
        sizes = [_megabytes(n * BATCH * DTYPE.itemsize) for n in (shape.ein, shape.eout)]
        rows.append([str(shape), str(blocks), *sizes, _megabytes(least), *(f"{t:.0f}" for t in times.values())])
    summed = [str(B0.total()), "", "", _megabytes(everything), *(f"{t:.0f}" for t in totals.values())]
    head = ["shape", "blocks", "Ein, MB", "Eout, MB", "block, MB", *(f"{name}, µs" for name in DEVICES)]
    return _table(head, [*rows, ["all", *summed]])


def _counted() -> str:
    rows = []
    totals = [0.0] * (2 + len(LAYOUTS))
    for shape, blocks in B0.items():
        unfused = eager.block(shape).bytes(shape, BATCH, DTYPE.itemsize)
        least = budget.block(shape).bytes(shape, BATCH, DTYPE.itemsize)
        moved = [core(shape, layout, DTYPE).distinct_at(BATCH) for layout in LAYOUTS]
        totals = [before + blocks * n for before, n in zip(totals, (least, *moved, unfused), strict=True)]
        rows.append(_counted_row(str(shape), least, moved, unfused))
    least, *moved, unfused = totals
    head = [
        "shape",
        "table, MB",
        *(f"{layout}, MB" for layout in LAYOUTS),
        "over the table",
        "eager, MB",
        "eager : ours",
    ]
    return _table(head, [*rows, _counted_row(f"all {B0.total()} blocks", least, moved, unfused)])


def _counted_row(name: str, least: float, moved: Sequence[float], unfused: float) -> list[str]:
    over = " / ".join(f"{100 * (n / least - 1):.1f} %" for n in moved)
    ratio = " / ".join(f"{unfused / n:.2f}" for n in moved)
    return [name, _megabytes(least), *map(_megabytes, moved), over, _megabytes(unfused), ratio]


def _launches() -> str:
    rows = []
    small = Shape(channels=8, size=8, kernel=3, stride=1, squeezed=2, bn1=True)
    for title, bn1 in (("with BN1", True), ("without BN1 (the first block)", False)):
        count = core(replace(FIRST, bn1=bn1), LAYOUTS[0], DTYPE)
        updates = [launch for launch in count.forward if launch.kernel == "update_running_stats"]
        forward, backward = (sum(call.kernels for call in calls) for calls in eager.dispatched(replace(small, bn1=bn1)))
        ours = [f"{len(count.forward) - len(updates)} + {len(updates)}", len(count.backward), len(count.launches)]
        rows.append([title, *map(str, (*ours, forward, backward, forward + backward))])
    head = ["block", "forward", "backward", "together", "eager forward", "eager backward", "eager together"]
    return _table(head, rows)


def _names(launches: Iterable[Launch]) -> str:
    return ", ".join(f"`{launch.kernel}`" for launch in launches if launch.kernel != "update_running_stats")


def _kernels() -> str:
    count = core(replace(FIRST, bn1=True), LAYOUTS[0], DTYPE)
    return f"- forward: {_names(count.forward)}\n- backward: {_names(count.backward)}"


TABLES: dict[str, Callable[[], str]] = {
    "roofline": _roofline,
    "counted": _counted,
    "launches": _launches,
    "kernels": _kernels,
}


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- /{name} -->)", re.DOTALL)


def stated(name: str) -> str:
    """The table as the page has it."""
    found = _pattern(name).search(PATH.read_text())
    if found is None:
        raise ValueError(f"{PATH}: expected a table between <!-- {name} --> and <!-- /{name} -->")
    return found[2].rstrip("\n")


def rewrite() -> None:
    """Put every table into the page again."""
    text = PATH.read_text()
    for name, table in TABLES.items():
        text = _pattern(name).sub(rf"\g<1>{table()}\n\g<3>", text)
    PATH.write_text(text)
