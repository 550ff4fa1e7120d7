"""What ``effnet bench`` can be told, checked before any work, and the cases that it stands for."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from effnet.bench.cases import (
    DTYPES,
    KINDS,
    MODELS,
    MODES,
    Case,
    Conditions,
    block_cases,
    model_cases,
    operator_cases,
)
from effnet.bench.defaults import PAGE, RESULTS, ROUNDS
from effnet.bench.measure import Settings
from effnet.bench.sides import FAMILIES
from effnet.bench.targets import THREADS, memory_wanted, target_cases
from effnet.bench.threads import allowed_processors, check_threads
from effnet.config import find_variant
from effnet.doctor.machine import choose_devices
from effnet.doctor.workload import OPERATORS
from effnet.errors import OptionError

LARGEST_BATCH, LARGEST_IMAGE = 65536, 16384
DEFAULT_BATCHES = (1, 8)
QUICK_IMAGE = 64
QUICK_BATCH, QUICK_ROUNDS = 2, 2
QUICK_DTYPES = ("float32",)


@dataclass(frozen=True)
class BenchOptions:
    """One run. An empty list takes the default.

    Attributes:
        what: of ``operator``, ``block`` and ``model``; by default all of them.
        operator: names of operators.
        model: names of variants; by default :data:`MODELS`.
        batch: pictures.
        image_size: side of the networks' input; by default the variant's.
        dtype: keys of :data:`DTYPES`.
        mode: of :data:`MODES`.
        threads: numbers of threads, each measured; by default what torch uses.
        pin: whether threads are bound to processors.
        rounds: visits of every side.
        side: families of sides; the fused operators on every backend that is here are one of them.
        device: ``cpu``, or a CUDA device.
        memory: whether the memory of the networks' and the block's training steps is measured.
        quick: one small case of each kind, few rounds: to see that all works, not to measure.
        targets: exactly the cases that docs/performance.md judges by, and not what the options above choose.
        csv: file that rows are added to; for ``report`` the files and folders that are read.
        report: write docs/performance.md's tables and plots from ``csv``, and measure nothing.
        page: the page that ``report`` writes into.
    """

    what: Sequence[str] = ()
    operator: Sequence[str] = ()
    model: Sequence[str] = ()
    batch: Sequence[int] = ()
    image_size: int | None = None
    dtype: Sequence[str] = ()
    mode: Sequence[str] = ()
    threads: Sequence[int] = ()
    pin: bool = True
    rounds: int = ROUNDS
    side: Sequence[str] = ()
    device: str = "cpu"
    memory: bool = True
    quick: bool = False
    targets: bool = False
    csv: Sequence[Path] = ()
    report: bool = False
    page: Path = PAGE
    chosen_device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        if self.report and self.targets:
            raise OptionError("report", "either measuring (--targets) or reporting", "both")
        known = {"what": KINDS, "operator": OPERATORS, "dtype": DTYPES, "mode": MODES, "side": FAMILIES}
        for option, expected in known.items():
            for value in getattr(self, option):
                _one_of(option, value, expected)
        for name in self.model:
            _check_model(name)
        _at_least("batch", self.batch, 1)
        _at_least("image_size", () if self.image_size is None else (self.image_size,), 32)
        _at_least("rounds", (self.rounds,), 1)
        _at_most("batch", self.batch, LARGEST_BATCH)
        _at_most("image_size", () if self.image_size is None else (self.image_size,), LARGEST_IMAGE)
        devices = choose_devices(self.device)
        object.__setattr__(self, "chosen_device", devices[0])
        if self.report:
            return
        for threads in self.chosen_threads:
            check_threads(threads)
        if self.csv:
            _check_writable(self.csv)

    @property
    def chosen_threads(self) -> Sequence[int]:
        """Those given; of the targets on a CPU 1 and 2, and else as many as torch uses."""
        if self.threads:
            return self.threads
        if self.targets and self.chosen_device.type == "cpu":
            return THREADS
        return (min(torch.get_num_threads(), len(allowed_processors())),)

    @property
    def chosen_sides(self) -> Sequence[str]:
        return self.side or FAMILIES

    @property
    def sources(self) -> Sequence[Path]:
        """What a report is made from."""
        return self.csv or (RESULTS,)

    @property
    def settings(self) -> Settings:
        return Settings(min(self.rounds, QUICK_ROUNDS), visit_seconds=0.0) if self.quick else Settings(self.rounds)

    def cases(self) -> list[Case]:
        """What is to be measured, in order."""
        if self.targets:
            return target_cases(self.chosen_threads, str(self.chosen_device))
        batches = self.batch or ((QUICK_BATCH,) if self.quick else DEFAULT_BATCHES)
        conditions = Conditions(
            batches,
            self.dtype or (QUICK_DTYPES if self.quick else tuple(DTYPES)),
            self.mode or MODES,  # type: ignore[arg-type]
            self.chosen_threads,
            str(self.chosen_device),
        )
        kinds = self.what or KINDS
        cases: list[Case] = []
        if "operator" in kinds:
            cases += self._smallest(operator_cases(conditions, self.operator or tuple(OPERATORS)))
        if "block" in kinds:
            cases += block_cases(conditions)
        if "model" in kinds:
            models = self.model or (MODELS[:1] if self.quick else MODELS)
            cases += model_cases(conditions, models, self.image_size or (QUICK_IMAGE if self.quick else None))
        return cases

    def _smallest(self, cases: list[Case]) -> list[Case]:
        """Of a quick run only the last shape of every operator."""
        if not self.quick:
            return cases
        last = {replace(case, shape=None, image=0): case for case in cases}
        return list(last.values())

    def wants_memory(self, case: Case) -> bool:
        """Whether the memory of ``case`` is measured."""
        if self.targets:
            return self.memory and memory_wanted(case, self.chosen_threads)
        return self.memory and case.training and case.kind != "operator"


def _one_of(option: str, value: str, expected: Iterable[str]) -> None:
    if value not in expected:
        raise OptionError(option, f"one of {', '.join(expected)}", repr(value))


def _at_least(option: str, values: Sequence[int], least: int) -> None:
    for value in values:
        if value < least:
            raise OptionError(option, f"at least {least}", value)


def _at_most(option: str, values: Sequence[int], most: int) -> None:
    for value in values:
        if value > most:
            raise OptionError(option, f"at most {most}", value)


def _check_model(name: str) -> None:
    try:
        find_variant(name)
    except ValueError as error:
        raise OptionError("model", "a name that `effnet info` lists", repr(name)) from error


def _check_writable(paths: Sequence[Path]) -> None:
    if len(paths) > 1:
        raise OptionError("csv", "one file to write to", f"{len(paths)}: {', '.join(map(str, paths))}")
    (path,) = paths
    if path.is_dir():
        raise OptionError("csv", "a file", f"{path}: a folder")
    if not path.parent.is_dir():
        raise OptionError("csv", "a file in a folder that exists", f"{path.parent}: no such folder")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OptionError("csv", "a file that can be written to", path)
