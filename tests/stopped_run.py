"""``effnet train``, stopped in its second epoch, as a process that ``torchrun`` or :func:`started` starts.

``python stopped_run.py HOW train …`` is ``effnet train …``. HOW is ``never``, or what happens to the first process:
``in-step`` and ``in-checkpoint`` kill it there, the latter with half of the file written; ``hang`` leaves it in the
step, after each process has written its number to ``<rank>.pid``.
"""

import io
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

import effnet.training
from effnet.cli import main
from effnet.training import Classifier
from processes import forkserver

EPOCH, BATCH = 1, 1
"""Where it happens, from 0."""


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_step(happens: Any) -> None:
    step = Classifier.training_step

    def stopped(self: Classifier, batch: Any, batch_idx: int) -> Any:
        if (self.current_epoch, batch_idx) == (EPOCH, BATCH):
            happens()
        return step(self, batch, batch_idx)

    Classifier.training_step = stopped  # type: ignore[method-assign]


def in_checkpoint() -> None:
    """Half of the second checkpoint that this process writes."""
    before = iter(range(EPOCH))
    save = torch.save

    def half(checkpoint: Any, path: Path) -> None:
        whole = io.BytesIO()
        save(checkpoint, whole)
        written = whole.getvalue()
        if next(before, None) is not None:
            path.write_bytes(written)
        else:
            path.write_bytes(written[: len(written) // 2])
            kill_itself()

    effnet.training.torch.save = half


def stop(how: str, rank: int) -> None:
    """Arrange for the run of this process to stop."""

    def hang() -> None:
        Path(f"{rank}.pid").write_text(str(os.getpid()))
        if rank == 0:
            time.sleep(600)

    if how == "hang":
        in_step(hang)
    elif how == "in-step" and rank == 0:
        in_step(kill_itself)
    elif how == "in-checkpoint" and rank == 0:
        in_checkpoint()


def started(how: str, arguments: Sequence[str], folder: Path) -> list[BaseProcess]:
    """Two processes of a run in ``folder``, in the environment that ``torchrun`` gives them, and forked from one that
    has imported everything; their output goes to ``<rank>.log``.
    """
    context = forkserver()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [context.Process(target=_run, args=(rank, port, how, list(arguments), folder)) for rank in range(2)]
    for process in processes:
        process.start()
    return processes


def _run(rank: int, port: int, how: str, arguments: list[str], folder: Path) -> None:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in {**ranks, **meeting}.items()})
    # What Lightning reads from the environment when it is imported.
    rank_zero_only.rank = rank
    torch.set_num_threads(1)
    os.chdir(folder)
    # A shell that starts the tests in the background has them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stop(how, rank)
    sys.argv = ["effnet", *arguments]
    with Path(f"{rank}.log").open("w", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        main()


if __name__ == "__main__":
    stop(sys.argv.pop(1), int(os.environ["RANK"]))
    main()
