"""Training in the processes that ``torchrun`` started: how many they are, and how they stop."""

import os
import signal
from types import FrameType
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback


class Launch(NamedTuple):
    """The processes that ``torchrun`` started: on this machine, and on all."""

    local_size: int
    size: int


def launch() -> Launch | None:
    """How ``torchrun`` started this process; None where something else did."""
    if not (torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()):
        return None
    return Launch(int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"]))


class StopsOnSigterm(Callback):
    """SIGTERM, which ``torchrun`` passes on, stops a run as Ctrl-C does.

    Lightning's own handler talks to the other processes from wherever the signal found this one, in the middle of a
    gradient's all-reduce for instance, and then they wait for each other.
    """

    def on_train_start(self, *arguments: Any) -> None:
        _interrupt_on_sigterm()

    def on_validation_start(self, *arguments: Any) -> None:
        _interrupt_on_sigterm()


def _interrupt_on_sigterm() -> None:
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # Once: what then cleans up is not to be interrupted.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
