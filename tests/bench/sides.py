"""Sides and rows that the tests make up."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from effnet.bench.cases import Case, Conditions, Mode, operator_cases
from effnet.bench.measure import Result
from effnet.bench.problem import Outcome, Problem
from effnet.bench.results import Row, make_row
from effnet.bench.sides import Eager, Runner
from effnet.bench.stamp import Stamp
from effnet.doctor.workload import BlockShape

SMALL = BlockShape(24, 5, 3, 2)
STAMP = Stamp("2026-01-02 03:04", "a machine, 2 processors", "AVX2", "torch 2.10, timm 1.0", "0.1")


def small_case(operator: str = "mbconv_core", mode: Mode = "training", dtype: str = "float32") -> Case:
    """An operator at a shape that takes no time."""
    case = operator_cases(Conditions((2,), (dtype,), (mode,)), [operator])[0]
    return replace(case, shape=SMALL, image=SMALL.side)


class Tampered(Eager):
    """PyTorch's own calls with what they leave changed; every call is noted in ``log``."""

    def __init__(self, change: Callable[[Outcome], Outcome], log: list[str], family: str = "fused") -> None:
        super().__init__("nchw")
        self.change, self.log = change, log
        self.family = family

    def build(self, problem: Problem) -> Runner:
        return _TamperedRunner(super().build(problem), self)


class _TamperedRunner:
    def __init__(self, runner: Runner, side: Tampered) -> None:
        self._runner, self._side = runner, side

    def activate(self) -> None:
        self._runner.activate()

    def step(self) -> object:
        self._side.log.append(self._side.family)
        return self._runner.step()

    def outcome(self) -> Outcome:
        return self._side.change(self._runner.outcome())


def unchanged(outcome: Outcome) -> Outcome:
    return outcome


def with_tensor(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Outcome], Outcome]:
    """Changes one tensor of an outcome."""
    return lambda outcome: outcome | {name: change(outcome[name])}


class Named:
    """A side of which only the name matters."""

    def __init__(self, family: str, layout: str = "nchw", name: str | None = None) -> None:
        self.family, self.layout = family, layout
        self.name = name or f"{family} {layout}"

    def missing(self, problem: Problem) -> str | None:
        raise NotImplementedError

    def build(self, problem: Problem) -> Runner:
        raise NotImplementedError


def row(case: Case, family: str, seconds: list[float], **changes: Any) -> Row:
    """A row of a made-up run."""
    made = make_row(case, Result(Named(family), error=1e-7, bound=1e-5, calls=1, seconds=seconds), STAMP)
    return replace(made, **changes)
