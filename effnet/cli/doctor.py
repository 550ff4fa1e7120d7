"""``effnet doctor``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from effnet.cli.errors import as_bad_parameter

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from effnet.doctor import Check, Machine, Row

FAILED = 1
UNLIMITED_WIDTH = 1000


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer shapes.")] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda (all of them) or cuda:1; by default all that is here.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the rows and the machine to this file.")
    ] = None,
) -> None:
    """Run every operator on this machine, check it against its definition, and time it; exit code 1 if one is wrong."""
    from rich.console import Console

    from effnet.doctor import check_report_path, choose_devices, plan, this_machine, write_report

    with as_bad_parameter():
        devices = choose_devices(device)
        if json is not None:
            check_report_path(json)
    console = Console()
    machine = this_machine()
    _print_machine(console, machine)
    rows = _run(console, plan(devices, quick=quick))
    # Every row is one line: a terminal that is too narrow breaks it, but no column is cut.
    Console(width=UNLIMITED_WIDTH).print(_table(rows))
    if json is not None:
        write_report(json, machine, rows)
    failed = sum(not row.ok for row in rows)
    console.print(f"{failed} of {len(rows)} rows failed" if failed else f"all {len(rows)} rows are ok")
    if failed:
        raise typer.Exit(FAILED)


def _print_machine(console: "Console", machine: "Machine") -> None:
    cuda = "no CUDA" if machine.torch_cuda is None else f"CUDA {machine.torch_cuda}"
    lines = [
        f"effnet-kernels {machine.version}, Python {machine.python}, {machine.system}",
        f"torch {machine.torch} with {cuda}",
        *machine.build.splitlines(),
        f"cpu: {machine.cpu}, {machine.processors} processors, threads in use: {machine.threads}",
        *(
            f"{gpu.device}: {gpu.name}, compute capability {gpu.capability}, {gpu.multiprocessors} multiprocessors, "
            f"{gpu.memory / 2**30:.0f} GiB, driver {machine.driver or 'unknown'}"
            for gpu in machine.gpus
        ),
    ]
    if machine.gpus_missing is not None:
        lines.append(f"cuda: {machine.gpus_missing}")
    lines += [f"backend {name}: {reason or 'available'}" for name, reason in machine.backends.items()]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _run(console: "Console", checks: "Sequence[Check]") -> "list[Row]":
    from rich.progress import track

    from effnet.doctor import run

    return list(track(run(checks), "checking", total=len(checks), console=console, transient=True))


def _table(rows: "Sequence[Row]") -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title="Operators (error: relative to float64, of the worst tensor; + bwd: forward and backward together)",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for heading in ("operator", "backend", "device", "dtype", "layout", "shape", "mode"):
        table.add_column(heading)
    for heading in ("error", "gradient", "fwd ms", "+ bwd ms", "fwd GB/s", "+ bwd GB/s"):
        table.add_column(heading, justify="right")
    table.add_column("result")
    for row in rows:
        table.add_row(
            row.operator,
            row.backend,
            row.device,
            row.dtype,
            row.layout,
            row.shape,
            row.mode,
            _number(row.forward_error, ".1e"),
            _number(row.gradient_error, ".1e"),
            _number(row.forward_ms, ".3f"),
            _number(row.forward_backward_ms, ".3f"),
            _number(row.forward_gbs, ",.1f"),
            _number(row.forward_backward_gbs, ",.1f"),
            # CUDA's messages go on for several lines about debugging.
            Text("ok", style="green") if row.failure is None else Text(row.failure.splitlines()[0], style="red"),
        )
    return table


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
