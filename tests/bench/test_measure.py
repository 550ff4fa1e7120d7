"""Who is timed and in what order: a wrong side is not, one that cannot run says why, and all sides take turns."""

import gc
import math
from collections import Counter
from typing import Any

import pytest
import torch

from bench.sides import Tampered, small_case, unchanged, with_tensor
from effnet.bench import measure as module
from effnet.bench.measure import Result, Settings, measure, orders
from effnet.bench.problem import Outcome, Problem
from effnet.bench.sides import Eager
from effnet.doctor.workload import OPERATORS
from effnet_kernels.backend import requested_backend

FEW = Settings(rounds=4, visit_seconds=0.0)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors are not worth splitting, and nothing is to settle."""
    torch.set_num_threads(1)
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)


def measured(*sides: Any, mode: Any = "training", operator: str = "mbconv_core") -> list[Result]:
    return measure(small_case(operator, mode), sides, FEW)


def test_every_side_comes_first_equally_often_and_has_changing_neighbours() -> None:
    found = list(orders(["a", "b", "c"], 6))  # type: ignore[list-item]
    assert all(sorted(order) == ["a", "b", "c"] for order in found)
    assert Counter(order[0] for order in found) == {"a": 2, "b": 2, "c": 2}
    after_a = {order[order.index("a") + 1] for order in found if order[-1] != "a"}  # type: ignore[arg-type]
    assert after_a == {"b", "c"}


def test_sides_take_turns_in_every_round() -> None:
    log: list[str] = []
    results = measured(Tampered(unchanged, log, "fused"), Tampered(unchanged, log, "timm"))
    assert [result.status for result in results] == ["ok", "ok"]
    assert all(len(result.seconds) == FEW.rounds for result in results)
    assert all(result.calls == 1 for result in results)
    # Each visit is one call to come back and one that is timed.
    visits = log[-4 * FEW.rounds :: 2]
    assert visits == log[-4 * FEW.rounds + 1 :: 2]
    assert visits == ["fused", "timm", "timm", "fused", "timm", "fused", "fused", "timm"]


@pytest.mark.parametrize(
    "name",
    [
        "out",
        "gradient of w",
        "gradient of gamma1",
        "gradient of b2",
        "gradient of input 0",
        "mean1",
        "var2",
    ],
)
@pytest.mark.parametrize("change", [lambda t: t * 1.01, lambda t: t * math.nan, torch.zeros_like, lambda t: t[:1]])
def test_a_side_that_is_wrong_is_not_timed(name: str, change: Any) -> None:
    log: list[str] = []
    wrong, right = measured(Tampered(with_tensor(name, change), log), Eager("nchw"))
    assert wrong.status == "wrong"
    assert wrong.reason.startswith(f"{name}: ")
    assert log == [] and wrong.seconds == []
    assert right.status == "ok" and len(right.seconds) == FEW.rounds


def test_a_gradient_that_is_missing_is_wrong() -> None:
    def without(outcome: Outcome) -> Outcome:
        return {name: t for name, t in outcome.items() if name != "gradient of w"}

    (result,) = measured(Tampered(without, []))
    assert (result.status, result.reason) == ("wrong", "gradient of w: missing")


def test_a_side_that_raises_gives_its_reason_and_the_others_go_on() -> None:
    class Raising(Eager):
        def build(self, problem: Problem) -> Any:
            raise RuntimeError("no compiler\nand how to get one")

    class Absent(Eager):
        def missing(self, problem: Problem) -> str:
            return "not installed"

    raising, absent, eager = measured(Raising("nchw"), Absent("nchw"), Eager("channels_last"))
    assert (raising.status, raising.reason) == ("failed", "RuntimeError: no compiler")
    assert (absent.status, absent.reason) == ("missing", "not installed")
    assert eager.status == "ok" and eager.seconds


@pytest.mark.parametrize("mode", ["training", "inference"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_errors_are_small_and_bounded(operator: str, mode: str) -> None:
    (result,) = measured(Eager("channels_last"), operator=operator, mode=mode)
    assert result.error is not None and result.bound is not None
    assert 0 < result.error <= result.bound <= 1e-4


def test_measuring_leaves_the_process_as_it_was() -> None:
    before = requested_backend()
    measured(Eager("nchw"))
    assert gc.isenabled() and requested_backend() == before and torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
