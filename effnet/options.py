"""What ``effnet train`` can be told, checked before any work."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from effnet.augmentation import AUGMENTATIONS
from effnet.config import find_variant
from effnet.data import SMALLEST_RESOLUTION, Source, check_roots, source_named
from effnet.errors import OptionError
from effnet.recipe import OPTIMIZERS, SCHEDULES, Defaults, scaled_learning_rate

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
ACCELERATORS = ("auto", "cpu", "gpu", "mps", "tpu")
LAST = "last"
LARGEST_RESOLUTION = 16384
LARGEST_SEED = 2**32 - 1  # Lightning's
CHECKPOINT_NAME = "last.ckpt"


@dataclass(frozen=True)
class TrainingOptions:
    """One training run. None takes the default of the data (resolution, augment) or of the optimiser (the rest).

    Attributes:
        data: a key of ``effnet.data.SOURCES``.
        data_root: the folder of ``folder``; the shards of ``webdataset``; elsewhere where downloads go.
        test_root: the test shards of ``webdataset``; None takes those beside ``train/``, if any.
        model: a name that ``effnet.create_model`` takes.
        epochs: passes over the training pictures.
        batch_size: pictures per step and device.
        fused: whether the network runs on the fused operators.
        optimizer: a key of ``effnet.recipe.OPTIMIZERS``.
        lr: the learning rate after warm-up.
        weight_decay: of convolutions and the classifier; BatchNorm and biases never decay.
        label_smoothing: probability moved from the right class to all.
        ema_decay: of the averaged weights, which are the result; 0 turns averaging off.
        warmup_epochs: epochs of linear warm-up.
        schedule: a key of ``effnet.recipe.SCHEDULES``.
        dropout: before the classifier; None takes the variant's.
        drop_connect: of the last block, growing linearly from 0; None takes the variant's.
        gradient_clip: the largest norm of the gradient; 0 is no limit.
        precision: as Lightning names it.
        accelerator: as Lightning names it.
        devices: as Lightning takes it, ``auto`` or a number.
        strategy: as Lightning names it, for instance ``ddp``.
        sync_batchnorm: whether BatchNorm takes its statistics over the batches of all devices together.
        num_workers: processes that load pictures.
        seed: of weights, order, augmentation and drop-connect.
        resolution: side of the network's input.
        augment: a key of ``effnet.augmentation.AUGMENTATIONS``.
        resume: a checkpoint to continue from, or ``last`` for the one in ``output_dir``.
        output_dir: where checkpoints, weights and measurements go; by default ``runs/<data>-<model>``.
        limit_batches: at most so many batches per epoch, for a quick look.
        progress: whether to show a progress bar.
    """

    data: str = "digits"
    data_root: Path | None = None
    test_root: Path | None = None
    model: str = "efficientnet_b0"
    epochs: int = 20
    batch_size: int = 64
    fused: bool = True
    optimizer: str = "adamw"
    lr: float | None = None
    weight_decay: float | None = None
    label_smoothing: float = 0.1
    ema_decay: float | None = None
    warmup_epochs: float | None = None
    schedule: str | None = None
    dropout: float | None = None
    drop_connect: float | None = None
    gradient_clip: float = 0.0
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: str = "auto"
    strategy: str = "auto"
    sync_batchnorm: bool = False
    num_workers: int = 0
    seed: int = 0
    resolution: int | None = None
    augment: str | None = None
    resume: str | None = None
    output_dir: Path | None = None
    limit_batches: int | None = None
    progress: bool = field(default=True, compare=False)

    def __post_init__(self) -> None:
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("accelerator", self.accelerator, ACCELERATORS)
        if self.schedule is not None:
            _one_of("schedule", self.schedule, SCHEDULES)
        if self.augment is not None:
            _one_of("augment", self.augment, AUGMENTATIONS)
        self._check_model()
        self._check_numbers()
        self._check_files()

    def _check_model(self) -> None:
        source_named(self.data)
        try:
            find_variant(self.model)
        except ValueError as error:
            raise OptionError("model", "a name that `effnet info` lists", repr(self.model)) from error

    def _check_numbers(self) -> None:
        _at_least("epochs", self.epochs, 1)
        _at_least("batch_size", self.batch_size, 2)
        _at_least("num_workers", self.num_workers, 0)
        _at_least("seed", self.seed, 0)
        _at_least("resolution", self.resolution, SMALLEST_RESOLUTION)
        _at_most("resolution", self.resolution, LARGEST_RESOLUTION)
        _at_most("seed", self.seed, LARGEST_SEED)
        _at_least("limit_batches", self.limit_batches, 1)
        _at_least("weight_decay", self.weight_decay, 0)
        _at_least("warmup_epochs", self.warmup_epochs, 0)
        _at_least("gradient_clip", self.gradient_clip, 0)
        for name in ("label_smoothing", "ema_decay", "dropout", "drop_connect"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < 1.0:
                raise OptionError(name, "a number from 0 to below 1", value)
        if self.lr is not None and not 0.0 < self.lr < float("inf"):
            raise OptionError("lr", "a positive number", self.lr)
        if self.warmup_epochs is not None and self.warmup_epochs >= self.epochs:
            raise OptionError("warmup_epochs", f"fewer than the {self.epochs} epochs", self.warmup_epochs)
        if self.precision == "16-mixed" and (self.accelerator == "cpu" or not torch.accelerator.is_available()):
            raise OptionError("precision", "32-true or bf16-mixed on a CPU", self.precision)
        if self.devices != "auto" and not (self.devices.isdecimal() and int(self.devices) >= 1):
            raise OptionError("devices", "auto or a number of at least 1", repr(self.devices))

    def _check_files(self) -> None:
        check_roots(self.data, self.data_root, self.test_root)
        # Not Path.is_file, to which a name that is too long is an error.
        if self.checkpoint is not None and not os.path.isfile(self.checkpoint):
            raise OptionError("resume", "a checkpoint", f"{self.checkpoint}: no such file")

    @property
    def source(self) -> Source:
        """The row of the data."""
        return source_named(self.data)

    @property
    def defaults(self) -> Defaults:
        """The row of the optimiser."""
        return OPTIMIZERS[self.optimizer]

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return self.output_dir or Path("runs") / f"{self.data}-{self.model}"

    @property
    def checkpoint(self) -> Path | None:
        """The file to continue from."""
        if self.resume is None:
            return None
        return self.folder / CHECKPOINT_NAME if self.resume == LAST else Path(self.resume)

    @property
    def chosen_resolution(self) -> int:
        return self.source.resolution if self.resolution is None else self.resolution

    @property
    def chosen_augmentation(self) -> str:
        return self.source.augmentation if self.augment is None else self.augment

    @property
    def chosen_schedule(self) -> str:
        return self.defaults.schedule if self.schedule is None else self.schedule

    @property
    def chosen_weight_decay(self) -> float:
        return self.defaults.weight_decay if self.weight_decay is None else self.weight_decay

    @property
    def chosen_ema_decay(self) -> float:
        return self.defaults.ema_decay if self.ema_decay is None else self.ema_decay

    @property
    def chosen_warmup_epochs(self) -> float:
        """By default the optimiser's, and never more than a quarter of the run."""
        return min(self.defaults.warmup_epochs, self.epochs / 4) if self.warmup_epochs is None else self.warmup_epochs

    def learning_rate(self, world_size: int) -> float:
        """After warm-up; by default scaled to the pictures per step on ``world_size`` devices."""
        return scaled_learning_rate(self.defaults, self.batch_size * world_size) if self.lr is None else self.lr


def _one_of(option: str, value: str, choices: Iterable[str]) -> None:
    names = tuple(choices)
    if value not in names:
        raise OptionError(option, f"one of {', '.join(names)}", repr(value))


def _at_most(option: str, value: int | None, most: int) -> None:
    if value is not None and value > most:
        raise OptionError(option, f"at most {most}", value)


def _at_least(option: str, value: float | None, least: int) -> None:
    # Written so that NaN is refused too.
    if value is not None and not least <= value < float("inf"):
        raise OptionError(option, f"at least {least}", value)
