"""The commands with one or two bad options: exit code 2, a message that names one of them, and nothing written."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from effnet.cli.app import app

NUMBERS = ("-1", "-0", "x", "", "nan", "1e400", "-inf", "0x10", "1.5", "--")
HUGE = "99999999999999999999999"
WORDS = ("", " ", "x", "nothing", "../..", "None", "0", "\u202e", "🙂", "a" * 5000, "%s%n", "{0..3}", "-")
FILES = ("nowhere", "nowhere/file", "/dev/null/x", "/proc/self/mem", "a" * 300, "\x01", "folder", "file", "{0..3}.tar")

TRAIN: Mapping[str, tuple[str, ...]] = {
    "--data": ("mnist", *WORDS),
    "--model": ("resnet50", "efficientnet_b9", *WORDS),
    "--epochs": ("0", *NUMBERS),
    "--batch-size": ("0", "1", HUGE, *NUMBERS),
    "--resolution": ("0", "31", HUGE, *NUMBERS),
    "--augment": WORDS,
    "--optimizer": ("sgd", *WORDS),
    "--lr": ("0", "-1", "nan", "inf", "x", "1e400"),
    "--weight-decay": ("-1", "nan", "inf", "x", "1e400"),
    "--label-smoothing": ("1", "-0.1", "nan", "inf", "x"),
    "--ema-decay": ("1", "-0.1", "nan", "inf", "x"),
    "--warmup-epochs": ("-1", "nan", "inf", "20", "1e400"),
    "--schedule": ("step", *WORDS),
    "--dropout": ("1", "-1", "nan", "x"),
    "--drop-connect": ("1", "-1", "nan", "x"),
    "--gradient-clip": ("-1", "nan", "inf", "x"),
    "--seed": ("-1", "x", "1.5", "nan", HUGE),
    "--precision": ("8", "64", "bf16", *WORDS),
    "--accelerator": ("npu", *WORDS),
    "--devices": ("0", "-1", "1,2", "1.5", "x", "nan", "²"),
    "--strategy": ("nothing", "x", "🙂"),
    "--num-workers": ("-1", "x", "1.5", "nan"),
    "--limit-batches": ("0", "-1", "x", "1.5"),
    "--resume": FILES,
    "--test-root": ("nowhere", "folder"),
}
PREDICT: Mapping[str, tuple[str, ...]] = {
    "--weights": FILES,
    "--model": ("resnet50", *WORDS),
    "--resolution": ("0", "31", "-1", "x", "1e9", "nan"),
    "--top": ("0", "-1", "x", "1.5"),
}
INFO: Mapping[str, tuple[str, ...]] = {"--model": ("resnet50", *WORDS)}
BENCH: Mapping[str, tuple[str, ...]] = {
    "--operator": WORDS,
    "--model": ("resnet50", *WORDS),
    "--batch": ("0", HUGE, *NUMBERS),
    "--image-size": ("0", "31", HUGE, *NUMBERS),
    "--dtype": ("float8", *WORDS),
    "--mode": ("both", *WORDS),
    "--device": ("gpu", "cuda:99", "meta", "x", "cpu:1", "🙂"),
    "--side": ("jax", *WORDS),
    "--threads": ("0", HUGE, *NUMBERS),
    "--rounds": ("0", *NUMBERS),
    "--csv": ("nowhere/rows.csv", "folder", "/dev/null/x"),
}
DOCTOR: Mapping[str, tuple[str, ...]] = {
    "--device": ("gpu", "cuda:99", "meta", "x", "CPU", "🙂"),
    "--json": ("nowhere/report.json", "folder", "/dev/null/x"),
}
COMMANDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "train": TRAIN,
    "predict": PREDICT,
    "info": INFO,
    "bench": BENCH,
    "doctor": DOCTOR,
}
"""Of every command, values of each option that it cannot take."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands run: a folder, an empty file, and nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    return tmp_path


def invoke(command: str, options: list[tuple[str, str]]) -> Result:
    arguments = [f"{name}={value}" for name, value in options]
    if command == "predict":
        given = {name for name, _ in options}
        arguments += ["picture.png"] + [
            f"{name}={value}"
            for name, value in (("--weights", "x.pth"), ("--model", "efficientnet_b0"))
            if name not in given
        ]
    return CliRunner().invoke(app, [command, *arguments])


def check_refused(command: str, options: list[tuple[str, str]], folder: Path) -> None:
    result = invoke(command, options)
    described = f"{command} {options}: {result.output} {result.exception!r}"
    assert result.exit_code == 2, described
    assert isinstance(result.exception, SystemExit), described
    names = [name for name, _ in options] + (["--weights"] if command == "predict" else [])
    assert any(name in result.output for name in names), described
    assert "Traceback" not in result.output, described
    assert sorted(os.listdir(folder)) == ["file", "folder"], described
    assert os.listdir(folder / "folder") == [], described


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
def test_bad_options_are_refused(folder: Path, data: st.DataObject) -> None:
    command = data.draw(st.sampled_from(tuple(COMMANDS)), "command")
    choices = COMMANDS[command]
    names = data.draw(st.lists(st.sampled_from(tuple(choices)), min_size=1, max_size=2, unique=True), "options")
    check_refused(command, [(name, data.draw(st.sampled_from(choices[name]), name)) for name in names], folder)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_refused_by_name(command: str, folder: Path) -> None:
    """Each option's first bad value alone."""
    for name, values in COMMANDS[command].items():
        check_refused(command, [(name, values[0])], folder)


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_options_are_refused(command: str, folder: Path) -> None:
    for name in ("--nothing", "--help-me", "-z"):
        result = CliRunner().invoke(app, [command, name])
        assert result.exit_code == 2
        assert name in result.output
    assert sorted(os.listdir(folder)) == ["file", "folder"]
