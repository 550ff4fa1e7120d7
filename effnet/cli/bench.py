"""``effnet bench``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from effnet.bench.defaults import PAGE, ROUNDS
from effnet.cli.errors import as_bad_parameter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console as RichConsole
    from rich.table import Table

    from effnet.bench.options import BenchOptions
    from effnet.bench.results import Row
    from effnet.bench.run import Run

FAILED = 1
BUSY_LOAD = 0.5
UNLIMITED_WIDTH = 1000

CASES = "What is measured"
CARE = "How it is measured"
RESULTS = "Where results go"


def _option(help_text: str, panel: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, metavar=metavar)


def bench(
    what: Annotated[
        list[str] | None, typer.Argument(metavar="[WHAT]...", help="operator, block and model; by default all of them.")
    ] = None,
    operator: Annotated[list[str] | None, _option("Only this operator; may be repeated.", CASES)] = None,
    model: Annotated[list[str] | None, _option("This variant, for B0, B4, Lite0 and V2-S.", CASES)] = None,
    batch: Annotated[list[int] | None, _option("Pictures; may be repeated; by default 1 and 8.", CASES)] = None,
    image_size: Annotated[int | None, _option("Of networks; by default the variant's.", CASES)] = None,
    dtype: Annotated[list[str] | None, _option("float32 or bfloat16; by default both.", CASES)] = None,
    mode: Annotated[list[str] | None, _option("training or inference; by default both.", CASES)] = None,
    device: Annotated[str, _option("cpu or cuda:0.", CASES)] = "cpu",
    side: Annotated[
        list[str] | None,
        _option("eager, compile, timm, onnxruntime, openvino or fused; by default all.", CASES),
    ] = None,
    targets: Annotated[bool, _option("What the project is judged by, and nothing else.", CASES, "--targets")] = False,
    threads: Annotated[list[int] | None, _option("May be repeated; by default torch's number.", CARE)] = None,
    pin: Annotated[bool, _option("Bind the threads to as many processors.", CARE, "--pin/--no-pin")] = True,
    rounds: Annotated[int, _option("Visits of every side.", CARE)] = ROUNDS,
    memory: Annotated[
        bool, _option("Also the memory of training steps, in fresh processes.", CARE, "--memory/--no-memory")
    ] = True,
    quick: Annotated[
        bool, _option("One small case of each kind, two rounds: no measurement, but a trial.", CARE, "--quick")
    ] = False,
    csv: Annotated[
        list[Path] | None,
        _option("Add rows to this file; with --report, files and folders to read.", RESULTS, metavar="PATH"),
    ] = None,
    report: Annotated[
        bool, _option("Write tables and plots from --csv (by default benchmarks/results).", RESULTS, "--report")
    ] = False,
    page: Annotated[Path, _option("The page that --report writes into.", RESULTS)] = PAGE,
) -> None:
    """Time rivals and fused operators side by side, after comparing their results; exit code 1 if one is wrong."""
    given: dict[str, Any] = {name: value for name, value in locals().items() if value is not None}
    from rich.console import Console

    from effnet.bench.options import BenchOptions

    console = Console()
    with as_bad_parameter("what"):
        options = BenchOptions(**given)
        if report:
            _report(console, options)
            return
    wrong = [row for row in _measure(console, options) if row.is_error]
    for row in wrong:
        typer.echo(f"{row.name} {row.size} {row.dtype} {row.mode}: {row.side} is {row.status}: {row.reason}", err=True)
    if wrong:
        raise typer.Exit(FAILED)


def _report(console: "RichConsole", options: "BenchOptions") -> None:
    from effnet.bench.report import find_rows, write_report

    for path in write_report(find_rows(options.sources), options.page):
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


def _measure(console: "RichConsole", options: "BenchOptions") -> "list[Row]":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from effnet.bench.results import write_rows
    from effnet.bench.run import Run

    cases = options.cases()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    found: list[Row] = []
    # Drawn when something is said, never by a thread of its own in the middle of a measurement.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("", total=len(cases))
        run = Run(
            options.chosen_device,
            options.settings,
            wants_side=lambda case, side: side.family in options.chosen_sides,
            pin=options.pin,
            wants_memory=options.wants_memory,
            progress=lambda message: bar.update(task, description=message, refresh=True),
        )
        _print_stamp(console, run)
        for case in cases:
            rows = run.case_rows(case)
            bar.advance(task)
            # The bar knows nothing of what another console writes.
            bar.stop()
            # Every row is one line: a terminal that is too narrow breaks it, but no column is cut.
            Console(width=UNLIMITED_WIDTH).print(_table(case.title, rows))
            bar.start()
            for path in options.csv:
                write_rows(path, rows)
            found += rows
    return found


def _print_stamp(console: "RichConsole", run: "Run") -> None:
    stamp = run.stamp
    for line in (f"{stamp.machine}, {stamp.capability}, load {stamp.load}", stamp.versions):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if float(stamp.load) > BUSY_LOAD:
        typer.echo(f"others are computing here (load {stamp.load}): what follows will not repeat", err=True)


def _table(title: str, rows: "Sequence[Row]") -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from effnet.bench.compare import RIVALS, compare_times, quickest

    best, comparison = quickest(rows, RIVALS), compare_times(rows)
    table = Table("side", title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for heading in ("ms", "quartiles", "best rival ÷", "error", "saved MB", "step MB"):
        table.add_column(heading, justify="right")
    table.add_column("why not")
    for row in rows:
        ratio = None if best is None or not row.median_ms or not best.median_ms else best.median_ms / row.median_ms
        chosen = row is best or (comparison is not None and row is comparison.fused)
        table.add_row(
            row.side,
            _number(row.median_ms, ".3f"),
            "–" if row.q1_ms is None else f"{row.q1_ms:.3f}–{row.q3_ms:.3f}",
            _number(ratio, ".2f"),
            _number(row.error, ".0e"),
            _megabytes(row.saved_bytes),
            _megabytes(row.step_bytes),
            Text(row.reason, style="red" if row.is_error else "dim"),
            style="bold" if chosen else None,
        )
    return table


def _megabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:,.0f}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
