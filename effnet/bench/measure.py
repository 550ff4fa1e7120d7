"""Times of a case: its sides are built, verified, warmed, and then visited in turn, round after round."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

import effnet_kernels as ek
from effnet.bench.cases import Case
from effnet.bench.defaults import ROUNDS
from effnet.bench.parity import Judge
from effnet.bench.problem import LAYOUTS, Problem
from effnet.bench.sides import Eager, Runner, Side
from effnet.doctor.timing import elapsed_ms

Status = Literal["ok", "missing", "failed", "wrong"]

VISIT_SECONDS = 0.03
SETTLE_SECONDS = 0.002
REWARM_BELOW_SECONDS = 0.1


@dataclass(frozen=True)
class Settings:
    """How carefully: ``rounds`` visits of every side, each of at least ``visit_seconds`` or one call."""

    rounds: int = ROUNDS
    visit_seconds: float = VISIT_SECONDS


@dataclass
class Result:
    """What one side did.

    Attributes:
        status: ``ok``; ``missing`` where it cannot run here, ``failed`` where it raised, ``wrong`` where its results
            are: then there are no times.
        reason: why it is not ok.
        error: relative to float64, of the tensor that is worst beside its ``bound``.
        calls: in one visit.
        seconds: of one call, the mean of each round's visit.
    """

    side: Side
    status: Status = "ok"
    reason: str = ""
    error: float | None = None
    bound: float | None = None
    calls: int = 0
    seconds: list[float] = field(default_factory=list)


Progress = Callable[[str], None]


def measure(
    case: Case, sides: Sequence[Side], settings: Settings, progress: Progress = lambda message: None
) -> list[Result]:
    """One result for each of ``sides``, in their order; the number of threads is the caller's to set."""
    backend = ek.backend.requested_backend()
    # Code that was compiled for another case would be kept, and counted against a limit.
    torch._dynamo.reset()
    try:
        problem = Problem(case)
        progress("definition in float64")
        eager = [Eager(layout).build(problem).outcome() for layout in LAYOUTS]
        judge = Judge(case, problem.expected, eager)
        results = []
        runners: dict[int, Runner] = {}
        for index, side in enumerate(sides):
            progress(f"building {side.name}")
            result, runner = _verified(problem, side, judge)
            results.append(result)
            if runner is not None:
                runners[index] = runner
        _time(problem, results, runners, settings, progress)
        return results
    finally:
        ek.set_backend(backend)


def _verified(problem: Problem, side: Side, judge: Judge) -> tuple[Result, Runner | None]:
    """What is timed, if it computes what it should."""
    reason = side.missing(problem)
    if reason is not None:
        return Result(side, "missing", reason), None
    try:
        runner = side.build(problem)
        parity = judge.judge(runner.outcome())
    # Whatever another library raises, the other sides still say something.
    except Exception as error:
        return Result(side, "failed", f"{type(error).__name__}: {error}".splitlines()[0]), None
    if parity.problem is not None:
        return Result(side, "wrong", parity.problem, parity.error, parity.bound), None
    return Result(side, error=parity.error, bound=parity.bound), runner


def _time(
    problem: Problem, results: list[Result], runners: dict[int, Runner], settings: Settings, progress: Progress
) -> None:
    device = problem.device
    for index, runner in runners.items():
        progress(f"warming {results[index].side.name}")
        results[index].calls = _calls_in_a_visit(runner, device, settings)
    # A collection in the middle of a visit would be one side's and not another's.
    gc.collect()
    gc.disable()
    try:
        for number, order in enumerate(orders(list(runners), settings.rounds)):
            for index in order:
                progress(f"round {number + 1} of {settings.rounds}: {results[index].side.name}")
                _visit(runners[index], device, results[index])
    finally:
        gc.enable()


def orders(indices: Sequence[int], rounds: int) -> Iterator[list[int]]:
    """The order of each round: rotated from round to round, and every other one backwards.

    So every side comes first as often as every other, and none always after the same neighbour.
    """
    for number in range(rounds):
        start = (number // 2) % max(1, len(indices))
        rotated = [*indices[start:], *indices[:start]]
        yield rotated if number % 2 == 0 else rotated[::-1]


def _calls_in_a_visit(runner: Runner, device: torch.device, settings: Settings) -> int:
    runner.activate()
    seconds = [elapsed_ms(runner.step, device) / 1e3 for _ in range(3)]
    return max(1, math.ceil(settings.visit_seconds / max(min(seconds), 1e-7)))


def _visit(runner: Runner, device: torch.device, result: Result) -> None:
    runner.activate()
    # The threads of the side before may be spinning still.
    time.sleep(SETTLE_SECONDS)
    if not result.seconds or result.seconds[-1] < REWARM_BELOW_SECONDS:
        runner.step()
    result.seconds.append(elapsed_ms(runner.step, device, result.calls) / 1e3 / result.calls)
