"""The plots of docs/performance.md, from rows alone: each draws into a file, or returns False if there is nothing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from effnet.bench.compare import FUSED, RIVALS, compare_times, groups, quickest
from effnet.bench.results import Row
from effnet.bench.sides import FAMILIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Plot = Callable[[Sequence[Row], Path], bool]

_COLOURS = dict(zip(FAMILIES, ("#8c8c8c", "#4c72b0", "#55a868", "#937860", "#8172b3", "#c44e52"), strict=True))


def speedup(rows: Sequence[Row], path: Path) -> bool:
    """Bars of ratios over the best rival, with quartiles, for networks and the block."""
    found = [(group[0], compare_times(group)) for group in groups(rows) if group[0].kind != "operator"]
    compared = [(row, comparison) for row, comparison in found if comparison is not None]
    if not compared:
        return False
    figure, axes = _figure(9, 1.2 + 0.34 * len(compared))
    labels = [f"{_title(row)}\nover {comparison.rival.side}" for row, comparison in compared]
    ratios = [comparison.ratio for _, comparison in compared]
    # A median of ratios lies between their quartiles.
    spread = [[c.ratio - c.low for _, c in compared], [c.high - c.ratio for _, c in compared]]
    axes.barh(labels, ratios, xerr=spread, color=_COLOURS[FUSED], ecolor="black", capsize=2)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=6)
    axes.set_xlabel("best rival's time / fused operators' time (quartiles over the rounds)")
    return _save(figure, path)


def memory(rows: Sequence[Row], path: Path) -> bool:
    """Bars of what a training step adds to the resident set, and of what is saved in it, for every family."""
    measured = groups(row for row in rows if row.step_bytes is not None)
    if not measured:
        return False
    figure, axes = _figure(9, 1.2 + 0.3 * sum(len({row.family for row in group}) for group in measured))
    for group in measured:
        for family in (*RIVALS, FUSED):
            known = [row for row in group if row.family == family]
            if known:
                least = min(known, key=lambda row: row.step_bytes or 0)
                label = f"{_title(least)}\n{least.side}"
                axes.barh(label, (least.step_bytes or 0) / 1e6, color=_COLOURS[family])
                axes.barh(label, (least.saved_bytes or 0) / 1e6, color="none", edgecolor="black", hatch="///")
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=6)
    axes.set_xlabel("peak memory of a step, MB; hatched: saved for backward")
    return _save(figure, path)


def roofline(rows: Sequence[Row], path: Path) -> bool:
    """Operators between the slope of memory and the ceiling of arithmetic, the quickest rival beside fused.

    Bytes are those that are necessary, for both: a side that moves more is lower, not further left.
    """
    timed = [row for row in rows if row.work_bytes and row.work_flops and row.median_ms and row.roof_gbs]
    if not timed:
        return False
    threads = min(row.threads for row in timed)
    figure, axes = _figure(8, 5)
    for group in groups(row for row in timed if row.threads == threads):
        for families, colour in ((RIVALS, _COLOURS["eager"]), ((FUSED,), _COLOURS[FUSED])):
            row = quickest(group, families)
            if row is not None and row.work_flops and row.work_bytes and row.median_ms:
                intensity, speed = row.work_flops / row.work_bytes, row.work_flops / row.median_ms / 1e6
                axes.plot(intensity, speed, "o" if families == (FUSED,) else "x", color=colour, markersize=4, alpha=0.8)
    _draw_roof(axes, [row for row in timed if row.threads == threads])
    axes.plot([], [], "o", color=_COLOURS[FUSED], label="fused")
    axes.plot([], [], "x", color=_COLOURS["eager"], label="best rival")
    axes.set(xscale="log", yscale="log", xlabel="operations per necessary byte", ylabel="10⁹ operations per second")
    axes.set_title(f"Operators at the shapes of B0, {threads} thread{'s' * (threads > 1)}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return _save(figure, path)


def _draw_roof(axes: "Axes", rows: Sequence[Row]) -> None:
    gbs, gflops = max(row.roof_gbs or 0.0 for row in rows), max(row.roof_gflops or 0.0 for row in rows)
    knee = gflops / gbs
    left = min((row.work_flops or 1) / (row.work_bytes or 1) for row in rows) / 2
    axes.plot([left, knee, 4 * knee], [left * gbs, gflops, gflops], color="black", linewidth=1)
    for text, at in ((f"{gbs:.0f} GB/s", (left, left * gbs)), (f"{gflops:.0f} GFLOP/s in float32", (knee, gflops))):
        axes.annotate(text, at, xytext=(0, 5), textcoords="offset points", fontsize=8)


def _title(row: Row) -> str:
    name = "MBConv" if row.kind == "block" else row.name.removeprefix("efficientnet_")
    return f"{name} {row.size} {row.dtype} {row.mode}, {row.threads} t"


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    # Not pyplot, which would choose a window system for the whole process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _save(figure: "Figure", path: Path) -> bool:
    # The same rows give the same file.
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "effnet"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
    return True


PLOTS: dict[str, Plot] = {"speedup": speedup, "memory": memory, "roofline": roofline}
