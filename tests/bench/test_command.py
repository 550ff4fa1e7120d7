"""``effnet bench`` and ``pytest benchmarks/`` from end to end, at sizes that take no time, and what they refuse."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import effnet_kernels as ek
from bench.sides import SMALL, small_case
from effnet.bench import cases, measure, memory
from effnet.bench.memory import Memory, measure_memory
from effnet.bench.options import BenchOptions
from effnet.bench.results import read_rows
from effnet.bench.sides import Eager
from effnet.bench.threads import allowed_processors, using_threads
from effnet.cli.app import app

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.output


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One shape that takes no time."""
    torch.set_num_threads(1)
    place = cases.Place(0, 0, 4, SMALL)
    monkeypatch.setattr(cases, "places", lambda: (place,))
    monkeypatch.setattr("effnet.bench.run.measure_roof", lambda device: None)


QUICK = ("operator", "--quick", "--operator", "mbconv_core", "--side", "eager", "--side", "fused", "--threads", "1")


@pytest.mark.usefixtures("small")
def test_a_run_prints_and_writes_every_side(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    code, output = bench(*QUICK, "--dtype", "float32", "--csv", str(path))
    assert code == 0, output
    rows = read_rows(path)
    assert [row.side for row in rows[:4]] == [
        "eager nchw",
        "eager channels_last",
        "fused cpu nchw",
        "fused cpu channels_last",
    ]
    assert [row.mode for row in rows] == ["training"] * 4 + ["inference"] * 4
    for row in rows:
        assert row.status == ("missing" if row.family == "fused" and ek.backends()["cpu"] else "ok")
        assert row.size == "2×24@5 k3 s2" and row.threads == 1 and f"torch {torch.__version__}" in row.versions
        if row.status == "ok":
            assert row.median_ms is not None and f"{row.median_ms:.3f}" in output
    assert "mbconv_core 2×24@5 k3 s2 float32 training, 1 thread" in output


@pytest.mark.usefixtures("small")
def test_a_wrong_side_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = ek.mbconv_core

    def wrong(*args: Any, **kwargs: Any) -> torch.Tensor:
        return original(*args, **kwargs) * 1.5

    monkeypatch.setattr(ek, "mbconv_core", wrong)
    path = tmp_path / "rows.csv"
    code, output = bench(*QUICK, "--dtype", "float32", "--mode", "training", "--csv", str(path))
    if ek.backends()["cpu"] is not None:
        pytest.skip(ek.backends()["cpu"])
    assert code == 1
    assert "fused cpu nchw is wrong: " in output
    assert {(row.family, row.status, row.median_ms is None) for row in read_rows(path)} == {
        ("eager", "ok", False),
        ("fused", "wrong", True),
    }


@pytest.mark.usefixtures("small")
def test_a_rival_that_falls_over_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fall(self: Eager, problem: object) -> None:
        if self.layout == "channels_last":
            raise RuntimeError("the rival fell over")

    original = Eager.build
    monkeypatch.setattr(measure, "Eager", type("Whole", (Eager,), {"build": original}))
    monkeypatch.setattr(Eager, "build", lambda self, problem: fall(self, problem) or original(self, problem))
    code, output = bench(*QUICK, "--dtype", "float32", "--mode", "training")
    assert code == 0
    assert "RuntimeError: the rival fell over" in output


@pytest.mark.parametrize(
    ("arguments", "option", "reason"),
    [
        (("network",), "WHAT: ", "expected one of operator, block, model, got 'network'"),
        (("--operator", "conv"), "--operator", "expected one of batch_norm_act"),
        (("--model", "resnet50"), "--model", "a name that `effnet info` lists, got 'resnet50'"),
        (("--batch", "0"), "--batch", "expected at least 1, got 0"),
        (("--image-size", "8"), "--image-size", "expected at least 32, got 8"),
        (("--dtype", "float8"), "--dtype", "expected one of float32, bfloat16, got 'float8'"),
        (("--mode", "both"), "--mode", "expected one of training, inference, got 'both'"),
        (("--side", "jax"), "--side", "expected one of eager, compile"),
        (("--rounds", "0"), "--rounds", "expected at least 1, got 0"),
        (("--threads", "0"), "--threads", "expected a number from 1 to"),
        (("--threads", "100000"), "--threads", "the processors this process may use, got 100000"),
        (("--device", "tpu"), "--device", "one of cpu"),
        (("--csv", "nowhere/rows.csv"), "--csv", "nowhere: no such folder"),
        (("--csv", "."), "--csv", "expected a file, got .: a folder"),
        (("--csv", "a.csv", "--csv", "b.csv"), "--csv", "expected one file to write to, got 2"),
        (("--report", "--csv", "nowhere.csv"), "--csv", "nowhere.csv: no such file or folder"),
        (("--report", "--csv", ".", "--page", "nowhere.md"), "--page", "nowhere.md: no such file"),
        (("--report", "--targets"), "--report", "got both"),
    ],
)
def test_what_is_refused_is_named(
    arguments: tuple[str, ...], option: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = bench(*arguments)
    assert code == 2
    assert option in output and reason in " ".join(output.replace("│", " ").split())


def test_options_stand_for_cases() -> None:
    everything = BenchOptions().cases()
    assert {(case.kind, case.mode, case.dtype) for case in everything} == {
        (kind, mode, dtype) for kind in cases.KINDS for mode in cases.MODES for dtype in cases.DTYPES
    }
    assert {case.name for case in everything if case.kind == "model"} == set(cases.MODELS)
    assert {case.batch for case in everything} == {1, 8}
    assert len({case.shape for case in everything if case.name == "mbconv_core"}) == 12
    quick = BenchOptions(quick=True).cases()
    assert {case.kind for case in quick} == set(cases.KINDS) and len(quick) == 12
    (one,) = BenchOptions(
        what=("model",), model=("efficientnet_b1",), batch=(3,), image_size=96, dtype=("bfloat16",), mode=("training",)
    ).cases()
    assert (one.name, one.batch, one.image, one.dtype) == ("efficientnet_b1", 3, 96, "bfloat16")
    assert BenchOptions().wants_memory(one) and not BenchOptions(memory=False).wants_memory(one)


def test_threads_are_set_and_bound_and_given_back() -> None:
    before, allowed = torch.get_num_threads(), allowed_processors()
    with using_threads(1):
        assert torch.get_num_threads() == 1
        assert allowed_processors() == allowed[:1]
    assert torch.get_num_threads() == before and allowed_processors() == allowed
    with using_threads(1, pin=False):
        assert allowed_processors() == allowed


def test_memory_of_a_step_is_that_of_a_fresh_process() -> None:
    """64×96@56: x, and for batch_norm_act one output of the same 77 MB, its gradient and x's at least."""
    case = small_case("batch_norm_act")
    case = cases.Case(**{**case.__dict__, "batch": 64, "shape": cases.BlockShape(96, 56, 3, 1), "image": 56})
    tensor = 64 * 96 * 56 * 56 * 4
    found = measure_memory(case, Eager("nchw"))
    assert isinstance(found, Memory) and found.saved is not None
    # x and what the activation takes; the residual is not needed.
    assert 2 * tensor <= found.saved < 2.1 * tensor
    assert 2.9 * tensor < found.step < 8 * tensor
    assert found.peak > found.step + 2 * tensor


def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    side = Eager("nchw")
    monkeypatch.setattr(side, "layout", "diagonal")
    with pytest.raises(RuntimeError, match=r"memory of eager diagonal: StopIteration"):
        measure_memory(small_case(), side)
    monkeypatch.setattr(memory, "TIMEOUT_SECONDS", 0.01)
    with pytest.raises(RuntimeError, match=r"no answer in 0\.01 s"):
        measure_memory(small_case(), Eager("nchw"))


def test_pytest_benchmarks_replays_the_rounds(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed: pip install '.[bench]'")
    csv, json_file = tmp_path / "rows.csv", tmp_path / "stats.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # It writes no JSON in a process of pytest-xdist, which this one would be taken for.
    environment.pop("PYTEST_XDIST_WORKER", None)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(ROOT / "benchmarks"), "--quick"),
            *("-k", "squeeze_excite and float32 and (eager or fused or openvino) and test_training"),
            *("--csv", str(csv), "--benchmark-json", str(json_file), "--threads", "1"),
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    rows = {row.side: row for row in read_rows(csv)}
    assert set(rows) == {"eager nchw", "eager channels_last", "fused cpu nchw", "fused cpu channels_last", "openvino"}
    import json

    timed = {row.side: row for row in rows.values() if row.status == "ok"}
    found = json.loads(json_file.read_text())["benchmarks"]
    assert len(found) == len(timed)
    for benchmark in found:
        row = timed[benchmark["params"]["side"]] if "params" in benchmark else None
        assert row is not None and benchmark["group"] == "squeeze_excite 2×1152@7 float32 training, 1 thread"
        assert benchmark["stats"]["rounds"] == len(row.rounds_ms)
        assert benchmark["stats"]["median"] == pytest.approx((row.median_ms or 0) / 1e3)
        assert benchmark["extra_info"]["threads"] == 1 and benchmark["extra_info"]["machine"] == row.machine
    assert "inference only" in run.stdout
