"""Training on Lightning: the module, what is written after every epoch, and ``train`` that ties them together."""

import logging
import math
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

import effnet
from effnet.checkpoint import check_fits, read_checkpoint, refused
from effnet.data import Split, TestSet, TrainingSet, load_split, test_loader, training_loader
from effnet.errors import OptionError
from effnet.files import replacing
from effnet.history import HISTORY_NAME, EpochResult, History
from effnet.options import CHECKPOINT_NAME, TrainingOptions
from effnet.preprocessing import Preprocessing
from effnet.processes import StopsOnSigterm, launch
from effnet.recipe import build_optimizer, build_schedule
from effnet.result import Labels, save_result
from effnet.seeds import mixed_seed

WEIGHTS_NAME = "model.safetensors"

# What a checkpoint must share with the run that continues it.
FIXED_OPTIONS = ("data", "model", "optimizer", "resolution", "batch_size")


@dataclass(frozen=True)
class TrainingResult:
    """What a run leaves behind.

    Attributes:
        test_loss: of the averaged weights after the last epoch, or NaN without test pictures; no epoch is chosen by it.
        test_accuracy: likewise.
        history: every epoch, those before a resume included.
        checkpoint: to resume from.
        weights: the averaged weights alone, with class names and preprocessing, for ``effnet predict``.
        steps: a CSV of the loss at every step.
    """

    test_loss: float
    test_accuracy: float
    history: tuple[EpochResult, ...]
    checkpoint: Path
    weights: Path
    steps: Path


class Pictures(LightningDataModule):
    """One split's loaders, in the order and with the draws that the seed gives."""

    def __init__(self, split: Split, preprocessing: Preprocessing, options: TrainingOptions) -> None:
        super().__init__()
        self.training = TrainingSet(split.train, preprocessing, options.chosen_augmentation, options.seed)
        self.test = None if split.test is None else TestSet(split.test, preprocessing)
        self.options = options

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        options = self.options
        return training_loader(self.training, options.batch_size, options.num_workers, **self._place())

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]] | list[Any]:
        options = self.options
        if self.test is None:
            return []
        return test_loader(self.test, 4 * options.batch_size, options.num_workers, **self._place())

    def _place(self) -> dict[str, int]:
        """Which of how many processes this is."""
        trainer = self.trainer
        rank, world_size = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        return {"rank": rank, "world_size": world_size}

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Pictures in channels_last, which is the faster layout, fused or not, on CPUs and GPUs."""
        images, labels = batch
        return images.contiguous(memory_format=torch.channels_last), labels


class Classifier(LightningModule):
    """A network, its loss and its optimiser."""

    def __init__(self, model: torch.nn.Module, num_classes: int, options: TrainingOptions) -> None:
        super().__init__()
        self.save_hyperparameters(_plain(options))
        self.model = model
        self.options = options
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def on_train_epoch_start(self) -> None:
        """Draw drop-connect and dropout from the epoch's own seed, so that a resumed epoch draws the same."""
        torch.manual_seed(mixed_seed(self.options.seed, self.current_epoch, self.global_rank))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.options.label_smoothing)
        self.accuracy(logits, labels)
        self.log("loss", loss, prog_bar=True, batch_size=len(labels))
        self.log("epoch_loss", loss, on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.test_accuracy(logits, labels)
        self.log("test_loss", F.cross_entropy(logits, labels), batch_size=len(labels), sync_dist=True)
        self.log("test_accuracy", self.test_accuracy, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        options, trainer = self.options, self.trainer
        lr = options.learning_rate(trainer.world_size)
        optimizer = build_optimizer(options.optimizer, self.model, lr, options.chosen_weight_decay)
        schedule = build_schedule(
            options.chosen_schedule,
            optimizer,
            steps_per_epoch=max(int(trainer.estimated_stepping_batches) // options.epochs, 1),
            epochs=options.epochs,
            warmup_epochs=options.chosen_warmup_epochs,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Average(WeightAveraging):
    """The exponential moving average of parameters and BatchNorm statistics: tested, saved, and the result.

    The decay grows as (1 + n) / (10 + n) with the number of updates n up to its limit, or a short run would end on an
    average that still holds the random start.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
            if not averaged.is_floating_point():
                return current
            n = int(updates)
            return torch.lerp(averaged, current, 1.0 - min(decay, (1 + n) / (10 + n)))

        super().__init__(avg_fn=average)


class ProgressBar(RichProgressBar):
    """Lightning's, without the number of the log's folder."""

    def get_metrics(self, *arguments: Any, **keywords: Any) -> Any:
        shown = super().get_metrics(*arguments, **keywords)
        shown.pop("v_num", None)
        return shown


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, of which a killed run leaves the one before or the one after, and never half of one.

    Lightning's own are written to the system's temporary folder and moved, which across file systems is a copy.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        with replacing(Path(path)) as partial:
            torch.save(checkpoint, partial)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Leave out what Lightning tells about itself; its warnings about the run stay."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (
                r".*isinstance\(treespec, LeafSpec\).* is deprecated",
                r"Checkpoint directory .* exists and is not empty",
                r"The '.*_dataloader' does not have many workers",
                r"Total length of `list` across ranks is zero",  # without test shards
            ):
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@_quiet_lightning()
def train(options: TrainingOptions) -> TrainingResult:
    """Run ``options`` to the end, and write checkpoint, weights and measurements to ``options.folder``.

    Raises:
        OptionError: an option does not fit the data or the checkpoint.
        KeyboardInterrupt: stopped by Ctrl-C; the checkpoint of the last whole epoch is there to resume from.
    """
    checkpoint = options.checkpoint
    saved = None if checkpoint is None else _checked_checkpoint(checkpoint, options)
    history = History(options.folder / HISTORY_NAME)
    trainer = _trainer(options, history)
    split = load_split(options.data, options.data_root, options.test_root)
    _check_sizes(split, options, trainer.world_size)
    seed_everything(options.seed, workers=True, verbose=False)
    module = Classifier(build_model(options, len(split.classes)), len(split.classes), options)
    if checkpoint is not None and saved is not None:
        check_fits(
            saved, module, build_optimizer(options.optimizer, module.model, lr=1.0, weight_decay=0.0), checkpoint
        )
        del saved  # which is mapped from the file that the run is going to replace
    source = options.source
    preprocessing = Preprocessing(options.chosen_resolution, source.crop, source.mean, source.std)
    pictures = Pictures(split, preprocessing, options)
    _fit(trainer, module, pictures, checkpoint)
    (measured,) = [{}] if split.test is None else trainer.validate(module, pictures, verbose=False)
    weights = options.folder / WEIGHTS_NAME
    if trainer.is_global_zero:
        save_result(weights, module.model, Labels(options.model, split.classes, preprocessing))
    logger = trainer.logger
    assert isinstance(logger, CSVLogger)
    return TrainingResult(
        measured.get("test_loss", math.nan),
        measured.get("test_accuracy", math.nan),
        tuple(history.epochs),
        options.folder / CHECKPOINT_NAME,
        weights,
        Path(logger.log_dir) / "metrics.csv",
    )


def build_model(options: TrainingOptions, num_classes: int) -> torch.nn.Module:
    """The network of ``options`` with fresh weights, those of the classifier 0.

    The classifier's usual start, uniform within 1 / √num_classes, is meant for a thousand classes: at ten its logits
    are so large that the loss begins near 6 instead of ln 10, and the first epochs go into undoing that.
    """
    defaults = options.defaults
    model = effnet.create_model(
        options.model,
        num_classes=num_classes,
        fused=options.fused,
        bn_eps=defaults.bn_eps,
        bn_momentum=defaults.bn_momentum,
        dropout=options.dropout,
        drop_connect=options.drop_connect,
    )
    assert isinstance(model, effnet.EfficientNet)
    torch.nn.init.zeros_(model.classifier.weight)
    if options.sync_batchnorm:
        # Not Lightning's: its modules are refused by DistributedDataParallel on CPU.
        effnet.sync_batchnorm(model)
    return model.to(memory_format=torch.channels_last)


def _trainer(options: TrainingOptions, history: History) -> Trainer:
    try:
        return Trainer(
            accelerator=options.accelerator,
            **_devices(options),
            precision=options.precision,  # type: ignore[arg-type]
            max_epochs=options.epochs,
            limit_train_batches=options.limit_batches,
            limit_val_batches=options.limit_batches,
            gradient_clip_val=options.gradient_clip or None,
            callbacks=_callbacks(options, history),
            plugins=WholeCheckpoints(),
            logger=CSVLogger(options.folder, name="steps"),
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=options.progress,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError) as error:
        # Which of them cannot go together only Lightning knows.
        expected = "accelerator, devices, strategy and precision that Lightning takes together"
        option = "strategy" if options.strategy != "auto" and "strategy" in str(error) else "accelerator"
        raise OptionError(option, expected, f"{getattr(options, option)!r}: {error}") from error


def _devices(options: TrainingOptions) -> dict[str, Any]:
    """Lightning's arguments for the processes: those of ``torchrun`` where it started this one."""
    launched = launch()
    if launched is None:
        return {"devices": options.devices, "strategy": options.strategy}
    if options.devices not in ("auto", str(launched.local_size)):
        raise OptionError("devices", f"auto or the {launched.local_size} that torchrun started", options.devices)
    several = options.strategy == "auto" and launched.size > 1
    return {
        "devices": launched.local_size,
        "num_nodes": launched.size // launched.local_size,
        "strategy": "ddp" if several else options.strategy,
    }


def _callbacks(options: TrainingOptions, history: History) -> list[Callback]:
    callbacks: list[Callback] = [LearningRateMonitor("step"), StopsOnSigterm()]
    if options.chosen_ema_decay > 0:
        callbacks.append(Average(options.chosen_ema_decay))
    callbacks.append(history)
    # No `monitor`: the newest epoch is kept, never the one that did best on the test pictures.
    callbacks.append(
        ModelCheckpoint(options.folder, Path(CHECKPOINT_NAME).stem, enable_version_counter=False, save_top_k=1)
    )
    if options.progress:
        callbacks.append(ProgressBar())
    return callbacks


def _fit(trainer: Trainer, module: Classifier, pictures: Pictures, checkpoint: Path | None) -> None:
    """Run the loop; Lightning answers Ctrl-C by leaving the process, which here becomes KeyboardInterrupt again."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, pictures, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:
        if trainer.interrupted:
            raise KeyboardInterrupt from error
        raise
    except OptionError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if checkpoint is None or any(isinstance(c, History) and c.begun for c in trainer.callbacks):  # type: ignore[attr-defined]
            raise
        raise refused(checkpoint, repr(error)) from error
    finally:
        signal.signal(signal.SIGINT, on_interrupt)


def _check_sizes(split: Split, options: TrainingOptions, world_size: int) -> None:
    pictures = len(split.train) // world_size
    if pictures < options.batch_size:
        raise OptionError("batch_size", f"at most the {pictures} training pictures of a device", options.batch_size)
    if split.test is not None and len(split.test) < world_size:
        raise OptionError("data_root", f"a test picture for each of {world_size} devices", len(split.test))


def _checked_checkpoint(path: Path, options: TrainingOptions) -> dict[str, Any]:
    """What ``path`` holds, if that is an unfinished run of the same network on the same data."""
    saved = read_checkpoint(path)
    before, epochs_done = saved["hyper_parameters"], saved["epoch"] + 1
    now = _plain(options)
    for name in FIXED_OPTIONS:
        if name not in before:
            raise refused(path, f"does not say its {name}")
        if before[name] != now[name]:
            raise OptionError(name, f"{before[name]!r} as in {path}", repr(now[name]))
    if epochs_done >= options.epochs:
        raise OptionError("epochs", f"more than the {epochs_done} that {path} has behind it", options.epochs)
    return saved


def _plain(options: TrainingOptions) -> dict[str, Any]:
    """The options as values that a checkpoint may hold without naming a class."""
    plain = {name: os.fspath(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
    return plain | {"resolution": options.chosen_resolution}
