"""Training: recipe, averaging, interruption and resume, what is written, and options that are refused."""

import csv
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.optim import RMSpropTF
from torch import nn
from typer.testing import CliRunner

import effnet
from effnet.cli.app import app
from effnet.errors import OptionError
from effnet.options import TrainingOptions
from effnet.recipe import build_optimizer, build_schedule
from effnet.training import Average, Classifier, TrainingResult, build_model, train

# Small enough for every push: two steps of eight digits an epoch.
SMALL: dict[str, Any] = {
    "batch_size": 8,
    "limit_batches": 2,
    "progress": False,
    "schedule": "exponential",
    "warmup_epochs": 0.5,
}


def small_run(folder: Path, **changes: Any) -> TrainingResult:
    return train(TrainingOptions(output_dir=folder, **{**SMALL, **changes}))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Runs are compared bit for bit, and batches of eight are not worth splitting."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """Three epochs without a break."""
    torch.set_num_threads(1)
    return small_run(tmp_path_factory.mktemp("straight"), epochs=3)


def assert_same_result(run: TrainingResult, other: TrainingResult) -> None:
    """Bit for bit the same weights, and the same figures but for the time."""
    weights, expected = load_file(run.weights), load_file(other.weights)
    assert weights.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(weights[name], expected[name])]
    assert different == []
    assert [e.loss for e in run.history] == [e.loss for e in other.history]
    assert [e.test_accuracy for e in run.history] == [e.test_accuracy for e in other.history]
    assert run.test_loss == other.test_loss


def test_resuming_equals_running_on(straight: TrainingResult, tmp_path: Path) -> None:
    before = small_run(tmp_path, epochs=2)
    assert len(before.history) == 2
    after = small_run(tmp_path, epochs=3, resume="last")
    assert [e.epoch for e in after.history] == [1, 2, 3]
    assert_same_result(after, straight)


def test_interrupted_run_keeps_its_last_whole_epoch(
    straight: TrainingResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    step = Classifier.training_step

    def interrupted(self: Classifier, batch: Any, batch_idx: int) -> Any:
        if (self.current_epoch, batch_idx) == (2, 1):
            signal.raise_signal(signal.SIGINT)
        return step(self, batch, batch_idx)

    # A shell's background job, which the tests may be, begins with SIGINT ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, inherited))
    arguments = ["train", "--batch-size", "8", "--limit-batches", "2", "--schedule", "exponential", "--epochs", "3"]
    arguments += ["--warmup-epochs", "0.5", "--no-progress", "--output-dir", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", interrupted)
        stopped = CliRunner().invoke(app, arguments)
    assert stopped.exit_code == 130
    assert f"--resume {tmp_path / 'last.ckpt'}" in stopped.output
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not (tmp_path / "model.safetensors").exists()

    assert_same_result(small_run(tmp_path, epochs=3, resume=str(tmp_path / "last.ckpt")), straight)


def test_what_a_run_writes(straight: TrainingResult) -> None:
    with (straight.weights.parent / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert [float(row["loss"]) for row in rows] == [e.loss for e in straight.history]
    assert all(0.0 <= e.accuracy <= 1.0 and e.seconds > 0.0 for e in straight.history)
    with straight.steps.open() as file:
        losses = [row["loss"] for row in csv.DictReader(file) if row["loss"]]
    assert len(losses) == 6
    assert straight.test_loss == pytest.approx(straight.history[-1].test_loss, rel=1e-6)
    assert straight.test_accuracy == pytest.approx(straight.history[-1].test_accuracy, rel=1e-6)


def test_first_loss_is_that_of_a_blank_classifier(straight: TrainingResult) -> None:
    with straight.steps.open() as file:
        first = next(float(row["loss"]) for row in csv.DictReader(file) if row["loss"])
    assert first == pytest.approx(math.log(10), rel=1e-5)


def test_checkpoint_holds_average_and_current_weights(straight: TrainingResult) -> None:
    checkpoint = torch.load(straight.checkpoint, weights_only=True)
    average, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert not torch.equal(average["model.stem.conv.weight"], current["model.stem.conv.weight"])
    assert not torch.equal(average["model.stem.bn.running_var"], current["model.stem.bn.running_var"])
    saved = load_file(straight.weights)
    assert torch.equal(saved["stem.conv.weight"], average["model.stem.conv.weight"])


def test_fused_and_unfused_runs_agree() -> None:
    """One loss curve, in float64: Adam's first steps follow gradients' signs, and so multiply the smallest rounding."""

    def losses(fused: bool) -> list[float]:
        torch.manual_seed(0)
        model = build_model(TrainingOptions(fused=fused), 10).double()
        optimizer = build_optimizer("adamw", model, lr=2e-3, weight_decay=0.05)
        curve = []
        for step in range(6):
            torch.manual_seed(step)
            pictures = torch.randn(8, 3, 32, 32, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(model(pictures), torch.randint(10, (8,)), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        return curve

    fused = losses(True)
    assert len(set(fused)) == 6
    assert losses(False) == pytest.approx(fused, rel=1e-9)


def test_another_seed_is_another_run(straight: TrainingResult, tmp_path: Path) -> None:
    other = small_run(tmp_path, epochs=2, seed=1)
    assert other.history[1].loss != straight.history[1].loss


def test_papers_recipe_runs(tmp_path: Path) -> None:
    run = small_run(
        tmp_path,
        epochs=1,
        optimizer="rmsprop",
        schedule=None,
        warmup_epochs=None,
        ema_decay=0.0,
        precision="bf16-mixed",
    )
    assert math.isfinite(run.history[0].loss)
    assert "current_model_state" not in torch.load(run.checkpoint, weights_only=True)


def test_papers_settings() -> None:
    options = TrainingOptions(optimizer="rmsprop", epochs=350, batch_size=256)
    model = build_model(options, 10)
    optimizer = build_optimizer("rmsprop", model, options.learning_rate(world_size=4), options.chosen_weight_decay)
    assert isinstance(optimizer, RMSpropTF)
    decayed, kept = optimizer.param_groups
    settings = {name: decayed[name] for name in ("lr", "alpha", "momentum", "eps", "weight_decay")}
    assert settings == {"lr": 0.064, "alpha": 0.9, "momentum": 0.9, "eps": 1e-3, "weight_decay": 1e-5}
    assert kept["weight_decay"] == 0.0
    assert (options.chosen_ema_decay, options.chosen_warmup_epochs, options.chosen_schedule) == (
        0.9999,
        5,
        "exponential",
    )
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.01, 1e-3)}


def test_biases_and_batch_norm_do_not_decay() -> None:
    model = effnet.create_model("efficientnet_b0", num_classes=10)
    decayed, kept = build_optimizer("adamw", model, 1e-3, 0.05).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all(names[id(parameter)].endswith("weight") and parameter.dim() > 1 for parameter in decayed["params"])
    assert all("bn" in names[id(p)] or names[id(p)].endswith("bias") for p in kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def factors(name: str, *, epochs: int, warmup: float, steps: int = 10) -> list[float]:
    """The learning rate at every step of a run at rate 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(name, optimizer, steps_per_epoch=steps, epochs=epochs, warmup_epochs=warmup)
    rates = []
    for _ in range(epochs * steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_warmup_is_linear_and_reaches_the_rate() -> None:
    rates = factors("constant", epochs=3, warmup=2)
    assert rates[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert rates[20:] == [1.0] * 10


def test_cosine_falls_to_nearly_nothing() -> None:
    rates = factors("cosine", epochs=4, warmup=1)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[25] == pytest.approx(0.5)
    assert 0.0 < rates[-1] < 0.01


def test_exponential_decay_in_steps_of_2_4_epochs() -> None:
    rates = factors("exponential", epochs=8, warmup=0)
    assert rates[:24] == [1.0] * 24
    assert rates[24:48] == pytest.approx([0.97] * 24)
    assert rates[-1] == pytest.approx(0.97**3)


@pytest.mark.parametrize(("updates", "kept"), [(0, 0.1), (90, 0.91), (10_000, 0.99)])
def test_average_forgets_the_start(updates: int, kept: float) -> None:
    average: Callable[..., torch.Tensor] = Average(0.99)._kwargs["avg_fn"]
    mixed = average(torch.ones(3), torch.zeros(3), torch.tensor(updates))
    torch.testing.assert_close(mixed, torch.full((3,), kept))
    assert average(torch.tensor(3), torch.tensor(7), torch.tensor(updates)).item() == 7


REFUSED: list[tuple[str, str, str]] = [
    ("--data", "mnist", "digits, fashion-mnist, cifar10, cifar100, folder"),
    ("--data", "folder", "--data-root"),
    ("--model", "resnet50", "effnet info"),
    ("--epochs", "-1", "at least 1, got -1"),
    ("--batch-size", "1", "at least 2, got 1"),
    ("--batch-size", "5000", "1437"),
    ("--resolution", "31", "at least 32, got 31"),
    ("--num-workers", "-1", "at least 0"),
    ("--optimizer", "sgd", "adamw, rmsprop"),
    ("--schedule", "step", "cosine, exponential, constant"),
    ("--augment", "mixup", "none, affine"),
    ("--lr", "0", "a positive number"),
    ("--lr", "nan", "a positive number"),
    ("--label-smoothing", "1", "below 1"),
    ("--ema-decay", "-0.1", "from 0 to below 1"),
    ("--warmup-epochs", "20", "fewer than the 20 epochs"),
    ("--weight-decay", "nan", "at least 0"),
    ("--drop-connect", "1.5", "below 1"),
    ("--precision", "8", "32-true, 16-mixed, bf16-mixed"),
    ("--accelerator", "npu", "auto, cpu"),
    ("--devices", "none", "auto or a number"),
    ("--seed", "-3", "at least 0"),
    ("--resume", "nowhere.ckpt", "no such file"),
    ("--resume", "last", "no such file"),
]


@pytest.mark.parametrize(("option", "value", "expected"), REFUSED)
def test_refused_options_name_themselves(
    option: str, value: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    result = CliRunner().invoke(app, ["train", option, value, "--output-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert option in result.output
    assert expected in result.output
    assert not (tmp_path / "last.ckpt").exists()


def test_missing_data_root_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"data_root: .*nowhere: no such folder"):
        TrainingOptions(data="folder", data_root=tmp_path / "nowhere")


def test_resuming_something_else_is_refused(straight: TrainingResult, tmp_path: Path) -> None:
    checkpoint = str(straight.checkpoint)
    with pytest.raises(OptionError, match=r"model: expected 'efficientnet_b0' as in .*, got 'efficientnet_b1'"):
        small_run(tmp_path, epochs=4, model="efficientnet_b1", resume=checkpoint)
    with pytest.raises(OptionError, match="epochs: expected more than the 3"):
        small_run(tmp_path, epochs=3, resume=checkpoint)
    with pytest.raises(OptionError, match="resume: expected a checkpoint of `effnet train`"):
        small_run(tmp_path, epochs=4, resume=str(straight.weights))
    for size in (0, 10, 1000):
        (tmp_path / "cut.ckpt").write_bytes(straight.checkpoint.read_bytes()[:size])
        with pytest.raises(OptionError, match="resume: expected a checkpoint of `effnet train`"):
            small_run(tmp_path, epochs=4, resume=str(tmp_path / "cut.ckpt"))


def test_help_explains_every_option() -> None:
    result = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for name in TrainingOptions.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in result.output
