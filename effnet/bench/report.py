"""From rows to the marked sections of docs/performance.md, and to its plots."""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path

from effnet.bench.compare import (
    FUSED,
    RIVALS,
    Comparison,
    compare_bytes,
    compare_times,
    groups,
    latest,
    mean_ratio,
    quickest,
)
from effnet.bench.plots import PLOTS
from effnet.bench.results import Row, read_rows
from effnet.bench.sides import FAMILIES
from effnet.bench.targets import verdicts
from effnet.errors import OptionError

NOTHING = "Not measured yet."


def find_rows(paths: Sequence[Path]) -> list[Row]:
    """The rows of the files, and of every CSV file in the folders; of a case measured twice the later ones.

    Raises:
        OptionError: a path does not exist, or a file is not one of rows.
    """
    files = []
    for path in paths:
        if not path.exists():
            raise OptionError("csv", "a file of rows or a folder of such files", f"{path}: no such file or folder")
        files += sorted(path.glob("*.csv")) if path.is_dir() else [path]
    try:
        return latest(row for file in files for row in read_rows(file))
    except ValueError as error:
        raise OptionError("csv", "a file that `effnet bench --csv` wrote", error) from error


def write_report(rows: Sequence[Row], page: Path) -> list[Path]:
    """Put tables into ``page`` and plots into the folder ``figures`` beside it; what was written.

    Raises:
        OptionError: ``page`` has not the comments between which the tables stand.
    """
    if not page.is_file():
        raise OptionError("page", "the page to write tables into", f"{page}: no such file")
    text = page.read_text()
    for name, section in SECTIONS.items():
        text = _replaced(text, name, section(rows), page)
    plots = {title: path for title, path in _plot_paths(page).items() if PLOTS[title](rows, path)}
    images = [f"![{title}]({path.relative_to(page.parent).as_posix()})" for title, path in plots.items()]
    page.write_text(_replaced(text, "plots", "\n\n".join(images) or NOTHING, page))
    return [page, *plots.values()]


def _replaced(text: str, name: str, content: str, page: Path) -> str:
    pieces = _pattern(name).split(text)
    if len(pieces) != 5:
        raise OptionError("page", f"a page with <!-- bench {name} --> and <!-- /bench {name} --> once", page)
    before, begin, _, end, after = pieces
    return f"{before}{begin}{content}\n{end}{after}"


def _plot_paths(page: Path) -> dict[str, Path]:
    folder = page.parent / "figures"
    folder.mkdir(exist_ok=True)
    return {title: folder / f"bench_{title}.svg" for title in PLOTS}


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- bench {name} -->\n)(.*?)(<!-- /bench {name} -->)", re.DOTALL)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """Markdown; the first ``texts`` columns are flush left. :data:`NOTHING` where there are no rows."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    rule = ["---"] * texts + ["---:"] * (len(head) - texts)
    return "\n".join([f"| {' | '.join(head)} |", f"| {' | '.join(rule)} |", *body]) if body else NOTHING


def _machines(rows: Sequence[Row]) -> str:
    runs = dict.fromkeys((r.when, r.machine, r.capability, r.versions, r.load) for r in rows)
    lines = [
        f"- {when} UTC: {machine}, {capability}; {versions}; load before {load}"
        for when, machine, capability, versions, load in runs
    ]
    return "\n".join(lines) or NOTHING


def _targets(rows: Sequence[Row]) -> str:
    lines = []
    for verdict in verdicts(rows):
        target, least = verdict.target, verdict.least
        several = verdict.shapes > 1
        wanted = f"{target.wanted:g}" + (f", each {target.worst:g}" if target.worst is not None else "")
        found = f"{verdict.ratio:.2f}" + (f" (least {least.ratio:.2f}, {least.fused.size})" if several else "")
        spread = "" if several or target.quantity != "time" else f"{least.low:.2f}–{least.high:.2f}"
        rival = f"{least.rival.side}{' there' if several else ''}"
        threads = str(verdict.threads) if target.quantity == "time" else "any"
        lines.append([target.title, threads, rival, wanted, found, spread, "yes" if verdict.reached else "no"])
    head = ["target", "threads", "best rival", "wanted", "ratio", "quartiles", "reached"]
    return _table(head, lines, texts=3)


def _times(kinds: Sequence[str]) -> Callable[[Sequence[Row]], str]:
    def section(rows: Sequence[Row]) -> str:
        chosen = [group for group in groups(rows) if group[0].kind in kinds]
        return _table(["case", "threads", *FAMILIES, "ratio", "quartiles"], map(_times_row, chosen))

    return section


def _times_row(group: Sequence[Row]) -> list[str]:
    first = group[0]
    name = "MBConv block" if first.kind == "block" else first.name
    cells = [f"{name} {first.size}, {first.dtype}, {first.mode}", str(first.threads)]
    cells += [_milliseconds(quickest(group, (family,))) for family in FAMILIES]
    comparison = compare_times(group)
    return [*cells, *(("–", "–") if comparison is None else _ratio(comparison))]


def _milliseconds(row: Row | None) -> str:
    if row is None or row.median_ms is None:
        return "–"
    return f"{row.median_ms:,.0f}" if row.median_ms >= 100 else f"{row.median_ms:.3g}"


def _ratio(comparison: Comparison) -> tuple[str, str]:
    return f"{comparison.ratio:.2f}", f"{comparison.low:.2f}–{comparison.high:.2f}"


def _operators(rows: Sequence[Row]) -> str:
    """One line for an operator under one condition; the shapes of B0 are averaged."""
    compared = [
        (group[0], comparison)
        for group in groups(row for row in rows if row.kind == "operator")
        if (comparison := compare_times(group)) is not None
    ]

    def condition(pair: tuple[Row, Comparison]) -> tuple[str, int, str, str, int, str]:
        row = pair[0]
        return (row.name, row.batch, row.dtype, row.mode, row.threads, row.device)

    lines = []
    for (name, batch, dtype, mode, threads, _), pairs in groupby(sorted(compared, key=condition), key=condition):
        found = [comparison for _, comparison in pairs]
        least = min(found, key=lambda c: c.ratio)
        shape = f"{least.ratio:.2f} ({least.fused.size}, {least.rival.side})"
        most = max(c.ratio for c in found)
        cells = [name, f"batch {batch}, {dtype}, {mode}", str(threads), str(len(found))]
        lines.append([*cells, f"{mean_ratio(found):.2f}", shape, f"{most:.2f}"])
    head = ["operator", "condition", "threads", "shapes", "mean ratio", "least (where, rival)", "most"]
    return _table(head, lines, texts=2)


def _memory(rows: Sequence[Row]) -> str:
    lines = []
    for group in groups(row for row in rows if row.peak_bytes is not None):
        first = group[0]
        for family in (*RIVALS, FUSED):
            known = [row for row in group if row.family == family and row.status == "ok"]
            if known:
                least = min(known, key=lambda row: row.step_bytes or 0)
                sizes = [_megabytes(least.saved_bytes), _megabytes(least.step_bytes), _megabytes(least.peak_bytes)]
                lines.append([f"{first.name} {first.size}, {first.dtype}, {first.mode}", least.side, *sizes])
        ratios = [compare_bytes(group, column) for column in ("saved_bytes", "step_bytes", "peak_bytes")]
        lines.append(["", "ratio over the least rival", *("–" if c is None else f"{c.ratio:.2f}" for c in ratios)])
    return _table(["case", "side", "saved, MB", "step, MB", "peak, MB"], lines, texts=2)


def _megabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:,.0f}"


def _absent(rows: Sequence[Row]) -> str:
    """Who was not timed, and why: once for each reason."""
    counts: dict[tuple[str, str, str], int] = {}
    for row in rows:
        if row.status != "ok":
            counts[row.side, row.status, row.reason] = counts.get((row.side, row.status, row.reason), 0) + 1
    lines = [[side, status, reason.replace("|", "\\|"), str(n)] for (side, status, reason), n in counts.items()]
    return _table(["side", "status", "reason", "cases"], lines, texts=3) if rows else NOTHING


SECTIONS: dict[str, Callable[[Sequence[Row]], str]] = {
    "machines": _machines,
    "targets": _targets,
    "networks": _times(("model", "block")),
    "operators": _operators,
    "memory": _memory,
    "absent": _absent,
}
