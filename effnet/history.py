"""The figures of a run's epochs: printed, kept in its checkpoint, and written as CSV."""

import csv
import math
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from effnet.files import replacing

HISTORY_NAME = "history.csv"


@dataclass(frozen=True)
class EpochResult:
    """What one epoch came to. Training figures are of the weights in training, test figures of their average."""

    epoch: int
    loss: float
    accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float

    def __str__(self) -> str:
        trained = f"epoch {self.epoch:3d}  loss {self.loss:.4f}  accuracy {self.accuracy:7.2%}"
        tested = f"  test loss {self.test_loss:.4f}  test accuracy {self.test_accuracy:7.2%}"
        return f"{trained}{'' if math.isnan(self.test_loss) else tested}  {self.seconds:.1f} s"


class History(Callback):
    """Prints each epoch's line, keeps it in the checkpoint, and writes all of them as CSV."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.epochs: list[EpochResult] = []
        self.begun = False
        self._started = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun = True
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
        result = EpochResult(
            trainer.current_epoch + 1,
            measured["epoch_loss"],
            measured["accuracy"],
            measured.get("test_loss", math.nan),
            measured.get("test_accuracy", math.nan),
            time.perf_counter() - self._started,
        )
        self.epochs.append(result)
        if trainer.is_global_zero:
            pl_module.print(result)
            self._write()

    def _write(self) -> None:
        with replacing(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(field.name for field in fields(EpochResult))
            writer.writerows(asdict(result).values() for result in self.epochs)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": [asdict(result) for result in self.epochs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = [EpochResult(**values) for values in state_dict["epochs"]]
