"""``torchrun -m effnet train``: split among processes, stopped in every way, and resumed bit for bit."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import effnet
import stopped_run
from effnet.data import EvenBatches, TestSet, load_split
from effnet.errors import OptionError
from effnet.files import replacing
from effnet.options import TrainingOptions
from effnet.result import read_labels
from effnet.training import train

BATCH = 8
LIMIT = 2
RUN = ["train", "--batch-size", str(BATCH), "--limit-batches", str(LIMIT), "--epochs", "3", "--no-progress"]
RUN += ["--schedule", "exponential", "--warmup-epochs", "0.5", "--sync-batchnorm", "--output-dir", "run"]
PATIENCE = 300
"""Seconds after which a process hangs, on a machine that does much else."""


@contextmanager
def torchrun(program: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Two processes of ``program`` in ``folder``, under ``torchrun``; none is left at the end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", *program]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)
    try:
        yield process
    finally:
        # Not at once by SIGKILL, which its processes would outlive: they are in sessions of their own.
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()


def stopped(how: str, arguments: Sequence[str], folder: Path) -> list[int]:
    """The exit codes of two processes that were stopped so; negative for a signal."""
    processes = stopped_run.started(how, arguments, folder)
    try:
        for process in processes:
            process.join(PATIENCE)
        return [process.exitcode if process.exitcode is not None else 1000 for process in processes]
    finally:
        for process in processes:
            process.kill()


def epochs_of(folder: Path) -> list[dict[str, str]]:
    """Every epoch's figures but its time."""
    with (folder / "run" / "history.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def straight(made_once: Callable[[str, Callable[[Path], object]], Path]) -> tuple[Path, str]:
    """A run of three epochs under torchrun without a break, and what it printed."""

    def make(folder: Path) -> None:
        with torchrun(["-m", "effnet", *RUN], folder) as process:
            output, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        (folder / "output.txt").write_text(output)

    folder = made_once("straight-torchrun", make)
    return folder, (folder / "output.txt").read_text()


def test_every_line_is_printed_once(straight: tuple[Path, str]) -> None:
    folder, output = straight
    lines = output.splitlines()
    assert len(lines) == len(set(lines))
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1", "2", "3"]
    assert sum(line.startswith("test accuracy") for line in lines) == 1
    written = sorted(path.name for path in (folder / "run").iterdir())
    assert written == ["history.csv", "last.ckpt", "model.safetensors", "steps"]
    assert [path.name for path in (folder / "run" / "steps").iterdir()] == ["version_0"]


def test_test_loss_is_that_of_all_processes_pictures(straight: tuple[Path, str]) -> None:
    folder, _ = straight
    weights = folder / "run" / "model.safetensors"
    labels = read_labels(weights)
    assert labels is not None
    pictures = TestSet(load_split("digits", None).test, labels.preprocessing)
    model = effnet.create_model("efficientnet_b0", len(labels.classes), weights=weights, bn_eps=1e-3).eval()
    model.bn_eps = TrainingOptions().defaults.bn_eps or model.variant.bn_eps
    seen = [
        i for rank in range(2) for batch in list(EvenBatches(len(pictures), 4 * BATCH, rank, 2))[:LIMIT] for i in batch
    ]
    images, classes = zip(*(pictures[index] for index in seen), strict=True)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(torch.stack(images)), torch.tensor(classes))
    assert float(epochs_of(folder)[-1]["test_loss"]) == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.slow
def test_killed_and_resumed_run_is_the_straight_one(straight: tuple[Path, str], tmp_path: Path) -> None:
    """Killed in the middle of an epoch, resumed, killed in the middle of a checkpoint, and resumed again."""
    run = tmp_path / "run"
    codes = stopped("in-step", RUN, tmp_path)
    assert codes[0] == -signal.SIGKILL and codes[1] not in (0, 1000)
    assert torch.load(run / "last.ckpt", weights_only=True)["epoch"] == 0

    codes = stopped("in-checkpoint", [*RUN, "--resume", "last"], tmp_path)
    assert codes[0] == -signal.SIGKILL and codes[1] not in (0, 1000)
    half = run / "last.ckpt.partial"
    assert 0 < half.stat().st_size < (run / "last.ckpt").stat().st_size
    assert torch.load(run / "last.ckpt", weights_only=True)["epoch"] == 1
    with pytest.raises(OptionError, match="resume: expected a checkpoint of `effnet train`"):
        train(TrainingOptions(resume=str(half), output_dir=tmp_path / "other"))

    assert stopped("never", [*RUN, "--resume", "last"], tmp_path) == [0, 0]
    assert not half.exists()
    expected_folder, output = straight
    assert "(cpu backend)" in output and "(cpu backend)" in (tmp_path / "0.log").read_text()
    weights, expected = (load_file(folder / "run" / "model.safetensors") for folder in (tmp_path, expected_folder))
    assert weights.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []
    assert epochs_of(tmp_path) == epochs_of(expected_folder)


def wait_for_hanging(folder: Path) -> list[int]:
    """The processes' numbers, once the first hangs in a step and the second waits for it."""
    files = [folder / f"{rank}.pid" for rank in range(2)]
    deadline = time.monotonic() + PATIENCE
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < deadline, "the run did not get to its second epoch"
        time.sleep(0.1)
    return [int(file.read_text()) for file in files]


def is_running(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_sigterm_to_torchrun_ends_every_process(tmp_path: Path) -> None:
    with torchrun([stopped_run.__file__, "hang", *RUN], tmp_path) as process:
        ranks = wait_for_hanging(tmp_path)
        process.terminate()
        _output, errors = process.communicate(timeout=PATIENCE)
        assert [rank for rank in ranks if is_running(rank)] == []
    assert process.returncode != 0
    assert errors.count("Stopped. Continue with the same options and --resume run/last.ckpt") == 1
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_interrupt_ends_every_process(tmp_path: Path) -> None:
    processes = stopped_run.started("hang", RUN, tmp_path)
    try:
        for rank in wait_for_hanging(tmp_path):
            os.kill(rank, signal.SIGINT)
        for process in processes:
            process.join(PATIENCE)
        assert processes[0].exitcode == 130
        assert processes[1].exitcode not in (0, None)
    finally:
        for process in processes:
            process.kill()
    assert "--resume run/last.ckpt" in (tmp_path / "0.log").read_text()
    assert "Stopped" not in (tmp_path / "1.log").read_text()


@pytest.mark.parametrize(("pictures", "batch_size", "world_size"), [(360, 32, 2), (33, 32, 2), (7, 2, 3), (5, 8, 1)])
def test_even_batches(pictures: int, batch_size: int, world_size: int) -> None:
    """Every picture once, and the same number of batches, none empty, for every process."""
    parts = [list(EvenBatches(pictures, batch_size, rank, world_size)) for rank in range(world_size)]
    assert sorted(index for part in parts for batch in part for index in batch) == list(range(pictures))
    assert {len(part) for part in parts} == {len(EvenBatches(pictures, batch_size, 0, world_size))}
    sizes = [len(batch) for part in parts for batch in part]
    assert max(sizes) <= batch_size and min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


def test_devices_other_than_torchruns_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "test", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match="devices: expected auto or the 2 that torchrun started, got 3"):
        train(TrainingOptions(devices="3", output_dir=tmp_path))


def test_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with replacing(path) as partial:
        partial.write_text("first")

    def fail_halfway() -> None:
        with replacing(path) as partial:
            partial.write_text("sec")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail_halfway()
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]
