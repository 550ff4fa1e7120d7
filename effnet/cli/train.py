"""``effnet train``."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from effnet.cli.errors import as_bad_parameter

STOPPED_BY_INTERRUPT = 130

DATA = "What to learn"
RECIPE = "How to learn"
MACHINE = "Where and how it runs"


def _option(help_text: str, panel: str, *names: str) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel)


def train(
    data: Annotated[str, _option("digits, fashion-mnist, cifar10, cifar100, folder or webdataset.", DATA)] = "digits",
    data_root: Annotated[
        Path | None,
        _option(
            "For folder: holds train/ and val/ or test/. For webdataset: tar files, as a pattern "
            "'shards/{000000..000127}.tar' or their folder. Elsewhere: where downloads go.",
            DATA,
        ),
    ] = None,
    test_root: Annotated[
        Path | None, _option("For webdataset: tar files to test with; by default val/ or test/ beside train/.", DATA)
    ] = None,
    model: Annotated[str, _option("A name that `effnet info` lists.", DATA)] = "efficientnet_b0",
    resolution: Annotated[int | None, _option("Side of the network's input; by default the data's.", DATA)] = None,
    augment: Annotated[
        str | None,
        _option("none, affine, crop-flip, resized-crop, autoaugment or randaugment; by default the data's.", DATA),
    ] = None,
    epochs: Annotated[int, _option("Passes over the training pictures.", RECIPE)] = 20,
    batch_size: Annotated[int, _option("Pictures per step and device.", RECIPE)] = 64,
    optimizer: Annotated[str, _option("adamw, or rmsprop with the paper's recipe.", RECIPE)] = "adamw",
    lr: Annotated[float | None, _option("After warm-up; by default scaled to the batch.", RECIPE)] = None,
    weight_decay: Annotated[float | None, _option("BatchNorm and biases never decay.", RECIPE)] = None,
    label_smoothing: Annotated[float, _option("Probability moved from the right class to all.", RECIPE)] = 0.1,
    ema_decay: Annotated[float | None, _option("Of the averaged weights; 0 turns averaging off.", RECIPE)] = None,
    warmup_epochs: Annotated[float | None, _option("Epochs of linear warm-up.", RECIPE)] = None,
    schedule: Annotated[str | None, _option("cosine, exponential or constant.", RECIPE)] = None,
    dropout: Annotated[float | None, _option("Before the classifier; by default the model's.", RECIPE)] = None,
    drop_connect: Annotated[float | None, _option("Of the last block; by default the model's.", RECIPE)] = None,
    gradient_clip: Annotated[float, _option("Largest norm of the gradient; 0 is no limit.", RECIPE)] = 0.0,
    seed: Annotated[int, _option("Of weights, order, augmentation and drop-connect.", RECIPE)] = 0,
    fused: Annotated[bool, _option("Run on the fused operators.", MACHINE, "--fused/--no-fused")] = True,
    precision: Annotated[str, _option("32-true, 16-mixed or bf16-mixed.", MACHINE)] = "32-true",
    accelerator: Annotated[str, _option("auto, cpu, gpu, mps or tpu, as Lightning names them.", MACHINE)] = "auto",
    devices: Annotated[str, _option("auto or a number.", MACHINE)] = "auto",
    strategy: Annotated[str, _option("auto or ddp, as Lightning names them.", MACHINE)] = "auto",
    sync_batchnorm: Annotated[
        bool,
        _option("BatchNorm over all devices' batches together.", MACHINE, "--sync-batchnorm/--no-sync-batchnorm"),
    ] = False,
    num_workers: Annotated[int, _option("Processes that load pictures.", MACHINE)] = 0,
    resume: Annotated[
        str | None, _option("A checkpoint to continue from, or last for the one in --output-dir.", MACHINE)
    ] = None,
    output_dir: Annotated[Path | None, _option("By default runs/<data>-<model>.", MACHINE)] = None,
    limit_batches: Annotated[int | None, _option("At most so many batches per epoch.", MACHINE)] = None,
    progress: Annotated[bool, _option("Show a progress bar.", MACHINE, "--progress/--no-progress")] = True,
) -> None:
    """Train a network: with no arguments, EfficientNet-B0 on scikit-learn's digits at 32×32."""
    chosen = dict(locals())
    from lightning.pytorch.utilities import rank_zero_only

    from effnet.options import CHECKPOINT_NAME, TrainingOptions
    from effnet.shards import ShardError
    from effnet.training import train as run

    say = rank_zero_only(typer.echo)
    with as_bad_parameter():
        options = TrainingOptions(**chosen)
        rank_zero_only(_announce)(options)
        try:
            result = run(options)
        except KeyboardInterrupt:
            checkpoint = options.folder / CHECKPOINT_NAME
            hint = (
                f"Continue with the same options and --resume {checkpoint}" if checkpoint.exists() else "No epoch done."
            )
            say(f"Stopped. {hint}", err=True)
            raise typer.Exit(STOPPED_BY_INTERRUPT) from None
        except ShardError as error:
            # From a loading process comes its traceback too, which ends on the error itself.
            typer.echo(f"Error: {str(error).strip().splitlines()[-1]}", err=True)
            raise typer.Exit(1) from None
    if not math.isnan(result.test_loss):
        say(f"test accuracy {result.test_accuracy:.2%}, test loss {result.test_loss:.4f}")
    say(f"checkpoint {result.checkpoint}")
    say(f"weights {result.weights}")


def _announce(options: Any) -> None:
    import torch

    from effnet_kernels import backend_for
    from effnet_kernels.build import describe

    size = options.chosen_resolution
    device = torch.device("cuda" if torch.cuda.is_available() and options.accelerator in ("auto", "gpu") else "cpu")
    typer.echo(describe())
    operators = f"fused operators ({backend_for(device)} backend)" if options.fused else "plain PyTorch"
    typer.echo(f"{options.model} on {options.data} at {size}×{size}, {operators}, seed {options.seed}")
