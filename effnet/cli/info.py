"""``effnet info``."""

from typing import TYPE_CHECKING, Annotated

import typer

from effnet.cli.errors import as_bad_parameter

if TYPE_CHECKING:
    from rich.console import Console


def info(
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Only this variant; may be given more than once.")
    ] = None,
) -> None:
    """Print the variants and what they cost, the backends, and how this installation was built."""
    from rich.console import Console

    from effnet.config import find_variant, list_models
    from effnet.errors import OptionError

    with as_bad_parameter():
        for name in model or ():
            try:
                find_variant(name)
            except ValueError as error:
                raise OptionError("model", f"one of {', '.join(list_models())}", repr(name)) from error
    console = Console()
    _print_variants(console, model or list_models())
    _print_backends(console)
    _print_build(console)


def _print_variants(console: "Console", names: list[str]) -> None:
    from rich.progress import track
    from rich.table import Table

    from effnet.info import fused_missing_reason, variant_cost

    costs = [variant_cost(name) for name in track(names, "tracing variants", console=console, transient=True)]
    table = Table("variant", title="Variants (memory: saved for backward per picture, float32)")
    for heading in ("parameters", "GMAC", "resolution", "unfused", "fused"):
        table.add_column(heading, justify="right")
    for cost in costs:
        table.add_row(
            cost.name,
            f"{cost.parameters:,}",
            f"{cost.macs / 1e9:.2f}",
            str(cost.resolution),
            _megabytes(cost.saved_bytes),
            _megabytes(cost.fused_saved_bytes),
        )
    console.print(table)
    reason = fused_missing_reason()
    if reason is not None:
        console.print(f"fused memory not traced: {reason}", markup=False)


def _print_backends(console: "Console") -> None:
    from rich.table import Table
    from rich.text import Text

    from effnet_kernels import backends

    table = Table("backend", "state", title="Backends")
    for name, reason in backends().items():
        table.add_row(name, Text("available" if reason is None else reason))
    console.print(table)


def _print_build(console: "Console") -> None:
    from effnet_kernels.build import describe

    console.print(describe(), markup=False, highlight=False)


def _megabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:,.1f} MB"
