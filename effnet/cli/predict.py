"""``effnet predict``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from effnet.cli.errors import as_bad_parameter

if TYPE_CHECKING:
    from rich.table import Table

    from effnet.predict import Guess

FAILED = 1


def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures to classify.")],
    weights: Annotated[
        str,
        typer.Option(help="A file of weights (.pth, .safetensors), or torchvision or timm to fetch the model's."),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="A name that `effnet info` lists; files written by `effnet train` carry it."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Where the weights come from, as effnet.load_weights takes it.")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(min=32, help="Side of the network's input; by default the weights'.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to print.")] = 5,
    fused: Annotated[bool, typer.Option("--fused/--no-fused", help="Run on the fused operators.")] = True,
) -> None:
    """Print the likeliest classes of every picture; exit code 1 if one could not be read."""
    from rich.console import Console
    from rich.text import Text

    from effnet.images import UnreadableImageError, read_image
    from effnet.predict import load_predictor

    with as_bad_parameter():
        predictor = load_predictor(weights, model=model, source=source, resolution=resolution, fused=fused)
    console = Console()
    failed = 0
    for path in images:
        try:
            image = read_image(path)
        except UnreadableImageError as error:
            typer.echo(error, err=True)
            failed += 1
            continue
        # Not as the table's title, which breaks a long path over several lines.
        console.print(Text(str(path), style="bold"), soft_wrap=True)
        console.print(_table(predictor.guesses(image, top)))
    if failed:
        typer.echo(f"{failed} of {len(images)} pictures could not be read", err=True)
        raise typer.Exit(FAILED)


def _table(guesses: "list[Guess]") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table("class")
    table.add_column("probability", justify="right")
    for guess in guesses:
        table.add_row(Text(guess.name), f"{guess.probability:.2%}")
    return table
