"""One run of EfficientNet-B0 on Fashion-MNIST twice from the same seed, fused and unfused: curves, accuracy, time.

    python benchmarks/fashion_mnist.py run --fused        # writes docs/figures/fashion_mnist_fused*.csv
    python benchmarks/fashion_mnist.py run --no-fused
    python benchmarks/fashion_mnist.py plot               # reads only the CSVs

Both runs see the same pictures in the same order, augmented alike, and drop the same blocks.
"""

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"
SMOOTHING_STEPS = 50

app = typer.Typer(pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Run:
    """The measurements of one run, as its CSVs hold them."""

    label: str
    step_losses: list[float]
    losses: list[float]
    test_accuracies: list[float]
    seconds: list[float]


def _stem(fused: bool) -> str:
    return f"fashion_mnist_{'fused' if fused else 'unfused'}"


@app.command()
def run(
    fused: Annotated[bool, typer.Option("--fused/--no-fused")] = True,
    epochs: int = 3,
    batch_size: int = 128,
    seed: int = 0,
    limit_batches: int | None = None,
    output_dir: Path = Path("runs"),
    figures: Path = FIGURES,
) -> None:
    """Train once and keep the loss of every step, and every epoch's figures, as CSV."""
    from effnet.options import TrainingOptions
    from effnet.training import train

    options = TrainingOptions(
        data="fashion-mnist",
        epochs=epochs,
        batch_size=batch_size,
        fused=fused,
        seed=seed,
        limit_batches=limit_batches,
        output_dir=output_dir / _stem(fused),
    )
    result = train(options)
    figures.mkdir(parents=True, exist_ok=True)
    with result.steps.open() as file:
        losses = [row["loss"] for row in csv.DictReader(file) if row["loss"]]
    with (figures / f"{_stem(fused)}_steps.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["step", "loss"], *enumerate(losses, start=1)])
    shutil.copyfile(options.folder / "history.csv", figures / f"{_stem(fused)}.csv")
    seconds = sum(epoch.seconds for epoch in result.history)
    typer.echo(f"{_stem(fused)}: test accuracy {result.test_accuracy:.2%} after {epochs} epochs in {seconds:.0f} s")


@app.command()
def plot(figures: Path = FIGURES) -> None:
    """Draw both runs into one figure and print their accuracies and times."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    runs = [_read(figures, fused=False), _read(figures, fused=True)]
    figure, (losses, accuracies) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for measured, style in zip(runs, ("-", "--"), strict=True):
        losses.plot(*_smoothed(measured.step_losses), style, label=measured.label)
        epochs = range(1, len(measured.test_accuracies) + 1)
        accuracies.plot(epochs, [100 * a for a in measured.test_accuracies], style, marker="o", label=measured.label)
    accuracies.xaxis.set_major_locator(MaxNLocator(integer=True))
    losses.set(xlabel="step", ylabel=f"training loss, mean of {SMOOTHING_STEPS} steps")
    accuracies.set(xlabel="epoch", ylabel="test accuracy of the average, %")
    for axes in (losses, accuracies):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.suptitle("EfficientNet-B0 on Fashion-MNIST at 32×32, same seed")
    figure.savefig(figures / "fashion_mnist.png", dpi=150)
    for measured in runs:
        typer.echo(
            f"{measured.label}: test accuracy {measured.test_accuracies[-1]:.2%}, "
            f"{sum(measured.seconds):.0f} s for {len(measured.seconds)} epochs"
        )
    apart = max(abs(a - b) / a for a, b in zip(runs[0].losses, runs[1].losses, strict=True))
    typer.echo(f"largest relative difference of an epoch's training loss: {apart:.2e}")


def _read(figures: Path, *, fused: bool) -> Run:
    stem = _stem(fused)
    with (figures / f"{stem}_steps.csv").open() as file:
        step_losses = [float(row["loss"]) for row in csv.DictReader(file)]
    with (figures / f"{stem}.csv").open() as file:
        epochs = list(csv.DictReader(file))

    def column(name: str) -> list[float]:
        return [float(epoch[name]) for epoch in epochs]

    label = "fused" if fused else "plain PyTorch"
    return Run(label, step_losses, column("loss"), column("test_accuracy"), column("seconds"))


def _smoothed(losses: list[float]) -> tuple[list[int], list[float]]:
    width = min(SMOOTHING_STEPS, len(losses))
    means = [sum(losses[end - width : end]) / width for end in range(width, len(losses) + 1)]
    return list(range(width, len(losses) + 1)), means


if __name__ == "__main__":
    app()
