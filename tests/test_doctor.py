"""``effnet doctor``: its bounds, its bytes, its table and file, and what it says of an operator that is wrong."""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import effnet_kernels as ek
from effnet.cli.app import app
from effnet.config import find_variant
from effnet.doctor import checks, choose_devices, machine, plan, run, timing
from effnet.doctor.checks import BOUNDS, Check, relative_error
from effnet.doctor.workload import (
    OPERATORS,
    QUICK_SHAPES,
    SHAPES,
    BlockShape,
    batch_norm_act_traffic,
    depthwise_conv_bn_act_traffic,
    mbconv_core_traffic,
    squeeze_excite_traffic,
)
from effnet.errors import OptionError
from effnet_kernels.backend import requested_backend
from tolerances import TOLERANCES

CPU = torch.device("cpu")
SMALL = (BlockShape(24, 5, 3, 2),)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small tensors are not worth splitting."""
    torch.set_num_threads(1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape that takes no time, each call timed as seldom as possible."""
    monkeypatch.setattr(checks, "QUICK_SHAPES", SMALL)
    monkeypatch.setattr(timing, "CPU_REPEATS", range(1, 2))


def doctor(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *arguments], env={"COLUMNS": "220"})
    return result.exit_code, result.output


def doctor_small(*arguments: str) -> tuple[int, str]:
    return doctor("--quick", "--device", "cpu", *arguments)


def rows_of(output: str, operator: str) -> list[list[str]]:
    """The cells of the lines of ``operator``, of which there are some."""
    lines = [line.strip() for line in output.splitlines() if line.lstrip().startswith(f"{operator} ")]
    assert lines
    return [re.split(r"\s{2,}", line) for line in lines]


def test_quick_run_prints_and_writes_every_operator(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    code, output = doctor_small("--json", str(path))
    assert code == 0, output
    (backend,) = machine.backends_of(CPU)
    dtypes = 2 if backend == "cpu" else 1
    for operator in OPERATORS:
        rows = rows_of(output, operator)
        assert len(rows) == len(QUICK_SHAPES) * dtypes * 2 * 2
        assert all(row[1:3] == [backend, "cpu"] and row[-1] == "ok" for row in rows)
    assert f"all {4 * len(QUICK_SHAPES) * dtypes * 4} rows are ok" in output
    assert f"torch {torch.__version__}" in output
    for name, reason in ek.backends().items():
        assert f"backend {name}: {reason or 'available'}" in output

    report = json.loads(path.read_text())
    assert report["machine"]["torch"] == torch.__version__
    assert report["machine"]["backends"] == dict(ek.backends())
    assert report["machine"]["processors"] == os.cpu_count()
    assert len(report["rows"]) == 4 * len(QUICK_SHAPES) * dtypes * 4
    for row in report["rows"]:
        assert row["ok"] and row["failure"] is None
        bounds = BOUNDS[getattr(torch, row["dtype"])]
        assert 0 < row["forward_error"] <= bounds.forward
        assert row["forward_ms"] > 0 and row["forward_gbs"] > 0
        training = row["mode"] == "training"
        for name in ("gradient_error", "forward_backward_ms", "forward_backward_gbs"):
            assert (row[name] is not None) == training
        if training:
            assert 0 < row["gradient_error"] <= bounds.gradient
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
    assert requested_backend() == "auto"


def test_the_plan_covers_every_combination_once() -> None:
    planned = plan([CPU])
    assert len(planned) == len(set(planned))
    assert {check.shape for check in planned} == set(SHAPES)
    assert set(QUICK_SHAPES) < set(SHAPES)
    assert {(check.layout, check.training) for check in planned} == {
        (layout, training) for layout in ("nchw", "channels_last") for training in (True, False)
    }


def test_shapes_are_blocks_of_b0() -> None:
    blocks = [block for stage in find_variant("efficientnet_b0").blocks() for block in stage]
    side, found = 112, set()
    for block in blocks:
        shape = BlockShape(block.expanded_channels, side, block.kernel_size, block.stride, block.expand_ratio)
        assert shape.squeezed == block.squeezed_channels
        found.add(shape)
        side = shape.side_out
    assert set(SHAPES) <= found and side == 7


def test_bounds_are_no_narrower_than_the_tests() -> None:
    for dtype, bounds in BOUNDS.items():
        assert bounds.forward >= TOLERANCES[dtype].forward and bounds.gradient >= TOLERANCES[dtype].gradient


@pytest.mark.parametrize("training", [True, False])
def test_a_wrong_result_fails_its_rows_and_no_others(
    training: bool, small: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = ek.squeeze_excite

    def wrong(*args: Any, **kwargs: Any) -> Tensor:
        return original(*args, **kwargs) * (1.5 if torch.is_grad_enabled() == training else 1.0)

    monkeypatch.setattr(ek, "squeeze_excite", wrong)
    path = tmp_path / "report.json"
    code, output = doctor_small("--json", str(path))
    assert code == 1
    for operator in OPERATORS:
        for row in rows_of(output, operator):
            bad = operator == "squeeze_excite" and (row[6] == "training") == training
            assert row[-1].startswith("out: relative error 5.0e-01 is over" if bad else "ok")
            assert row[9] != "–"
    failed = [row for row in json.loads(path.read_text())["rows"] if not row["ok"]]
    assert {row["operator"] for row in failed} == {"squeeze_excite"}
    assert f"{len(failed)} of " in output


def test_a_wrong_gradient_is_named(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ek.mbconv_core

    def wrong(u: Tensor, w: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # The same value, and twice the gradient of w.
        return original(u, 2 * w - w.detach(), *args, **kwargs)

    monkeypatch.setattr(ek, "mbconv_core", wrong)
    code, output = doctor_small()
    assert code == 1
    for row in rows_of(output, "mbconv_core"):
        assert row[-1].startswith("gradient of w: relative error 1.0e+00" if row[6] == "training" else "ok")


def raises(*args: Any, **kwargs: Any) -> Tensor:
    raise RuntimeError("the kernel fell over\nand this is what to set to debug it")


def test_an_operator_that_raises_shows_its_message(
    small: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ek, "batch_norm_act", raises)
    path = tmp_path / "report.json"
    code, output = doctor_small("--json", str(path))
    assert code == 1
    assert all(row[-1] == "RuntimeError: the kernel fell over" for row in rows_of(output, "batch_norm_act"))
    assert all(row[-1] == "ok" for row in rows_of(output, "mbconv_core"))
    failures = {row["failure"] for row in json.loads(path.read_text())["rows"] if row["operator"] == "batch_norm_act"}
    assert failures == {"RuntimeError: the kernel fell over\nand this is what to set to debug it"}
    assert requested_backend() == "auto"


@pytest.mark.parametrize("spoil", [lambda out: out * math.nan, lambda out: out[:1], torch.zeros_like])
def test_nan_wrong_shapes_and_zeros_are_no_results(
    spoil: Callable[[Tensor], Tensor], small: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = ek.batch_norm_act
    monkeypatch.setattr(ek, "batch_norm_act", lambda *args, **kwargs: spoil(original(*args, **kwargs)))
    path = tmp_path / "report.json"
    assert doctor_small("--json", str(path))[0] == 1
    rows = json.loads(path.read_text())["rows"]
    assert not any(row["ok"] for row in rows if row["operator"] == "batch_norm_act")
    assert all(row["ok"] for row in rows if row["operator"] == "squeeze_excite")


def test_running_statistics_are_checked(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ek.batch_norm_act

    def forgetful(x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, **kwargs: Any) -> Tensor:
        return original(x, gamma, beta, mean.clone(), var, **kwargs)

    monkeypatch.setattr(ek, "batch_norm_act", forgetful)
    rows = [row for row in run(plan([CPU], quick=True)) if row.operator == "batch_norm_act"]
    for row in rows:
        assert (row.failure or "").startswith("mean: relative error" if row.mode == "training" else "")
        assert row.ok == (row.mode == "inference")


def test_the_backend_is_restored_between_rows(small: None) -> None:
    ek.set_backend("reference")
    try:
        for _ in run(plan([CPU], quick=True)):
            assert requested_backend() == "reference"
    finally:
        ek.set_backend("auto")


def test_without_kernels_the_reference_is_checked(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ek, "backends", lambda: {"cuda": "no", "triton": "no", "cpu": "not built", "reference": None})
    rows = list(run(plan([CPU], quick=True)))
    assert {(row.backend, row.dtype, row.failure) for row in rows} == {("reference", "float32", None)}


def test_traffic_is_that_of_the_passes() -> None:
    """Hand-computed from the table of passes: 10 elements in, 3 out."""
    assert mbconv_core_traffic(10, 3, training=True) == (2 * 10 + 4 * 3, 5 * 10 + 4 * 3)
    assert mbconv_core_traffic(10, 3, training=False).forward == 10 + 3 * 3
    assert sum(mbconv_core_traffic(1, 1, training=True)) == 7 + 8
    # Without SE F3 falls away, and in inference the scale; without BN1, F1 and B3.
    assert mbconv_core_traffic(10, 3, training=True, se=False) == (2 * 10 + 3 * 3, 5 * 10 + 4 * 3)
    assert mbconv_core_traffic(10, 3, training=False, se=False).forward == 10 + 3
    assert mbconv_core_traffic(10, 3, training=True, bn1=False) == (10 + 4 * 3, 2 * 10 + 4 * 3)
    assert depthwise_conv_bn_act_traffic(10, 3, training=True) == (10 + 3 * 3, 2 * 10 + 4 * 3)
    assert depthwise_conv_bn_act_traffic(10, 3, training=False).forward == 10 + 3
    assert batch_norm_act_traffic(10, training=True) == (30, 50)
    assert batch_norm_act_traffic(10, training=False).forward == 20
    assert batch_norm_act_traffic(10, training=True, residual=True) == (40, 50)
    assert squeeze_excite_traffic(10) == (30, 40)


def test_bandwidth_is_bytes_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """mbconv_core on 2×96@112 at stride 2: Ein = 2 408 448, Eout = 602 112; everything takes 1 ms."""
    monkeypatch.setattr(checks, "median_ms", lambda function, device: 1.0)
    shape = BlockShape(96, 112, 3, 2)
    assert shape.elements(2) == (2_408_448, 602_112)
    (backend,) = machine.backends_of(CPU)
    check = Check("mbconv_core", shape, CPU, torch.float32, "nchw", backend, training=True)
    (row,) = run([check])
    assert row.shape == "2×96@112 k3 s2"
    assert row.forward_gbs == pytest.approx(7_225_344 * 4 / 1e6)
    assert row.forward_backward_gbs == pytest.approx((7_225_344 + 14_450_688) * 4 / 1e6)


def test_relative_error() -> None:
    expected = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert relative_error(torch.tensor([3.0, 4.5]), expected) == pytest.approx(0.1)
    assert relative_error(expected.float(), expected) == 0.0
    assert relative_error(torch.tensor([3.0, math.nan]), expected) == math.inf
    assert relative_error(torch.ones(2), torch.zeros(2, dtype=torch.float64)) == math.inf


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:x", "CPU", ""])
def test_unknown_devices_are_refused(device: str) -> None:
    code, output = doctor("--device", device)
    assert code == 2
    assert "--device" in output and repr(device) in output and "one of cpu" in output


def test_cuda_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_devices(None) == choose_devices("cpu") == [CPU]
    with pytest.raises(OptionError, match=r"device: expected one of cpu, got 'cuda' \((torch sees no|this torch is)"):
        choose_devices("cuda")


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    assert choose_devices(None) == [CPU, first, second]
    assert choose_devices("cuda") == [first, second]
    assert choose_devices("cuda:1") == [second]
    with pytest.raises(OptionError, match="one of cpu, cuda, cuda:0, cuda:1, got 'cuda:2'"):
        choose_devices("cuda:2")


def test_unwritable_files_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ek, "batch_norm_act", raises)
    for path, reason in ((tmp_path, "a folder"), (tmp_path / "nowhere" / "report.json", "no such folder")):
        code, output = doctor("--json", str(path))
        assert code == 2
        assert "--json" in output and reason in output


def test_a_report_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from effnet.doctor import this_machine, write_report

    path = tmp_path / "report.json"
    path.write_text("old")

    def fail(*args: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(path, this_machine(), [])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
