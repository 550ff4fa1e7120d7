"""Rows of one case held against each other: the quickest fused side and the quickest rival, each in its best layout."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import geometric_mean, median, quantiles

from effnet.bench.results import Row
from effnet.bench.sides import FAMILIES

FUSED = "fused"
RIVALS = tuple(family for family in FAMILIES if family != FUSED)


@dataclass(frozen=True)
class Comparison:
    """How many times less time or memory ``fused`` takes than ``rival``; from ``low`` to ``high`` by quartiles."""

    rival: Row
    fused: Row
    ratio: float
    low: float
    high: float


def latest(rows: Iterable[Row]) -> list[Row]:
    """Without the rows of cases that the same machine measured again later."""
    last: dict[tuple[object, ...], str] = {}
    rows = list(rows)
    for row in rows:
        last[_case(row)] = max(row.when, last.get(_case(row), ""))
    return [row for row in rows if row.when == last[_case(row)]]


def _case(row: Row) -> tuple[object, ...]:
    *case, _when, machine = row.group
    return (*case, machine)


def groups(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of every case, in the order of the rows."""
    return [list(members) for _, members in groupby(rows, key=lambda row: row.group)]


def quickest(group: Sequence[Row], families: Sequence[str]) -> Row | None:
    """The side of ``families`` with the least median, or None where none of them has one."""
    timed = [row for row in group if row.family in families and row.median_ms is not None]
    return min(timed, key=lambda row: row.median_ms or 0.0) if timed else None


def compare_times(group: Sequence[Row], rivals: Sequence[str] = RIVALS) -> Comparison | None:
    """Medians' ratio, spread over the rounds; None where a side is lacking or a fused side of the case is wrong."""
    if any(row.family == FUSED and row.status == "wrong" for row in group):
        return None
    rival, fused = quickest(group, rivals), quickest(group, (FUSED,))
    if rival is None or fused is None:
        return None
    ratios = [theirs / ours for theirs, ours in zip(rival.rounds_ms, fused.rounds_ms, strict=True)]
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Comparison(rival, fused, median(ratios), low, high)


def compare_bytes(group: Sequence[Row], column: str, rivals: Sequence[str] = RIVALS) -> Comparison | None:
    """The least of ``column`` among rivals over the least among fused sides."""
    sides = [(row, getattr(row, column)) for row in group if row.status == "ok"]
    known = [(row, size) for row, size in sides if size]
    theirs = [pair for pair in known if pair[0].family in rivals]
    ours = [pair for pair in known if pair[0].family == FUSED]
    if not theirs or not ours:
        return None
    (rival, most), (fused, least) = (min(pairs, key=lambda pair: pair[1]) for pairs in (theirs, ours))
    ratio = most / least
    return Comparison(rival, fused, ratio, ratio, ratio)


def mean_ratio(comparisons: Sequence[Comparison]) -> float:
    """The geometric mean, which does not depend on who is divided by whom."""
    return geometric_mean(c.ratio for c in comparisons)
