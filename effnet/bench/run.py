"""A run: one machine, one stamp, and case after case, each with its number of threads."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from effnet.bench.cases import Case
from effnet.bench.measure import Progress, Result, Settings, measure
from effnet.bench.memory import Memory, measure_memory
from effnet.bench.results import Row, make_row
from effnet.bench.roofline import Roof, measure_roof
from effnet.bench.sides import Side, all_sides
from effnet.bench.stamp import take_stamp
from effnet.bench.threads import using_threads


@dataclass
class Run:
    """How the cases of a run are measured.

    Attributes:
        settings: rounds and visits.
        wants_side: which sides take part in a case.
        pin: whether threads are bound to processors, where these compute.
        wants_memory: of which cases the memory is measured, too.
        wants_roof: whether the machine's bandwidth and arithmetic are measured where a case is an operator.
        progress: is told what is being done.
    """

    device: torch.device
    settings: Settings = field(default_factory=Settings)
    wants_side: Callable[[Case, Side], bool] = lambda case, side: True
    pin: bool = True
    wants_memory: Callable[[Case], bool] = lambda case: False
    wants_roof: bool = True
    progress: Progress = lambda message: None

    def __post_init__(self) -> None:
        self.stamp = take_stamp(self.device)
        self._roofs: dict[int, Roof] = {}

    def case_rows(self, case: Case) -> list[Row]:
        """The rows of one case, one for each side."""
        sides = [side for side in all_sides(self.device) if self.wants_side(case, side)]
        with using_threads(case.threads, pin=self.pin and self.device.type == "cpu"):
            roof = self._roof(case)
            results = measure(case, sides, self.settings, self.progress)
            return [make_row(case, result, self.stamp, self._memory(case, result), roof) for result in results]

    def _roof(self, case: Case) -> Roof | None:
        if case.kind != "operator" or not self.wants_roof:
            return None
        if case.threads not in self._roofs:
            self.progress("bandwidth and arithmetic of the machine")
            self._roofs[case.threads] = measure_roof(self.device)
        return self._roofs[case.threads]

    def _memory(self, case: Case, result: Result) -> Memory | None:
        if result.status != "ok" or not self.wants_memory(case):
            return None
        self.progress(f"memory of {result.side.name}")
        try:
            return measure_memory(case, result.side)
        except RuntimeError as error:
            result.reason = str(error)
            return None
