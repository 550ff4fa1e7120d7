"""``pytest benchmarks/``: every case is a group of pytest-benchmark, every side of it a test.

pytest-benchmark times one test after the other. Here the sides of a case are measured together, round by round, by
``effnet.bench`` when the first of them is asked for; each test then replays its side's rounds on a clock that moves by
exactly what was measured. So the tables, comparisons and JSON files of pytest-benchmark are of interleaved rounds.
"""

from collections.abc import Callable
from functools import cache

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from effnet.bench.cases import Case
from effnet.bench.defaults import ROUNDS
from effnet.bench.options import BenchOptions
from effnet.bench.results import Row, write_rows
from effnet.bench.run import Run
from effnet.bench.sides import all_sides


class Clock:
    """Stands still but for what is replayed."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()
EXTRA_INFO = (
    "threads",
    "device",
    "machine",
    "capability",
    "versions",
    "load",
    "error",
    "bound",
    "calls",
    "saved_bytes",
    "step_bytes",
    "peak_bytes",
)

Replay = Callable[[Case, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("effnet", "what is measured, and how")
    group.addoption("--threads", action="append", type=int, help="number of threads; may be repeated")
    group.addoption("--rounds", type=int, default=ROUNDS, help=f"visits of every side (default {ROUNDS})")
    group.addoption("--batch", action="append", type=int, help="pictures; may be repeated (default 1 and 8)")
    group.addoption("--device", default="cpu", help="cpu or cuda:0")
    group.addoption("--quick", action="store_true", help="one small case of each kind, two rounds: a trial")
    group.addoption("--no-memory", action="store_true", help="without the memory of training steps")
    group.addoption("--csv", help="add rows to this file")


@pytest.fixture(scope="session")
def options(pytestconfig: pytest.Config) -> BenchOptions:
    return _options(pytestconfig)


def _options(config: pytest.Config, what: str | None = None) -> BenchOptions:
    given = {name: config.getoption(name) for name in ("threads", "batch")}
    csv = config.getoption("csv")
    try:
        return BenchOptions(
            what=() if what is None else (what,),
            rounds=config.getoption("rounds"),
            device=config.getoption("device"),
            quick=config.getoption("quick"),
            memory=not config.getoption("no_memory"),
            csv=() if csv is None else (config.invocation_params.dir / csv,),
            **{name: tuple(value) for name, value in given.items() if value},
        )
    except ValueError as error:
        raise pytest.UsageError(f"--{error}") from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for every side of every case of the kind that the file is about, in the mode that the test is about."""
    kind, mode = metafunc.module.KIND, metafunc.function.__name__.rpartition("_")[2]
    chosen = _options(metafunc.config, kind)
    cases = [case for case in chosen.cases() if case.mode == mode]
    sides = [side.name for side in all_sides(chosen.chosen_device)]
    pairs = [
        pytest.param(case, side, id=f"{_identifier(case)}-{side.replace(' ', '_')}") for case in cases for side in sides
    ]
    metafunc.parametrize(("case", "side"), pairs)


def _identifier(case: Case) -> str:
    size = case.size.replace(" ", "_").replace("²", "").replace("×", "x")
    return f"{case.name}-{size}-{case.dtype}-{case.threads}t"


@pytest.fixture(scope="session")
def measured(options: BenchOptions, request: pytest.FixtureRequest) -> Callable[[Case], list[Row]]:
    """The rows of a case, measured when they are first asked for and added to --csv; of the sides that are selected."""
    chosen = [item.callspec.params for item in request.session.items if isinstance(item, pytest.Function)]
    asked = {(parameters["case"], parameters["side"]) for parameters in chosen}
    run = Run(
        options.chosen_device,
        options.settings,
        wants_side=lambda case, side: (case, side.name) in asked,
        wants_memory=options.wants_memory,
    )

    @cache
    def rows(case: Case) -> list[Row]:
        found = run.case_rows(case)
        for path in options.csv:
            write_rows(path, found)
        return found

    return rows


@pytest.fixture
def replay(measured: Callable[[Case], list[Row]], benchmark: BenchmarkFixture) -> Replay:
    """Give pytest-benchmark the rounds of one side."""

    def give(case: Case, side: str) -> None:
        row = next(row for row in measured(case) if row.side == side)
        benchmark.group = case.title
        benchmark.extra_info.update({name: getattr(row, name) for name in EXTRA_INFO})
        if row.is_error:
            pytest.fail(f"{row.side} is {row.status}: {row.reason}", pytrace=False)
        if row.status != "ok":
            pytest.skip(row.reason)
        rounds = iter(row.rounds_ms)

        def advance() -> None:
            CLOCK.now += next(rounds) / 1e3

        benchmark.pedantic(advance, rounds=len(row.rounds_ms), iterations=1)

    return give
