"""The comparisons that decide whether the operators are worth their while, as data: ``effnet bench --targets``."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from effnet.bench.cases import Case, Conditions, Mode, model_cases, operator_cases
from effnet.bench.compare import RIVALS, Comparison, compare_bytes, compare_times, groups, mean_ratio
from effnet.bench.results import Row
from effnet.doctor.workload import OPERATORS

Quantity = Literal["time", "saved_bytes", "peak_bytes"]
THREADS = (1, 2)
OPERATOR_BATCH = 8
_B0, _LITE0 = "efficientnet_b0", "efficientnet_lite0"


@dataclass(frozen=True)
class Target:
    """One line of the table: the least ratio over the best rival that is wanted.

    Attributes:
        title: what is compared.
        names: of the variants or operators.
        batch, image: of the cases; image 0 stands for every shape of B0.
        quantity: what the ratio is of; bytes are those of a training step.
        wanted: the ratio, or for operators the geometric mean of the ratios; 1 is as good as the best rival.
        worst: the least ratio that is wanted of every single shape.
        rivals: families that count.
    """

    title: str
    names: Sequence[str]
    batch: int
    image: int
    mode: Mode = "training"
    dtype: str = "float32"
    quantity: Quantity = "time"
    wanted: float = 1.0
    worst: float | None = None
    rivals: Sequence[str] = RIVALS

    def cases(self, threads: Sequence[int] = THREADS, device: str = "cpu") -> list[Case]:
        """What is measured for it; memory does not depend on the threads, and is measured with the first number."""
        chosen = threads if self.quantity == "time" else threads[:1]
        conditions = Conditions((self.batch,), (self.dtype,), (self.mode,), chosen, device)
        if self.image == 0:
            return operator_cases(conditions, self.names)
        return model_cases(conditions, self.names, self.image)


TARGETS = (
    Target("training step, B0, 224², batch 8", (_B0,), 8, 224, wanted=2.5),
    Target("training step, B0, 32², batch 64", (_B0,), 64, 32, wanted=2.0),
    *(Target(f"{name}, forward and backward", (name,), OPERATOR_BATCH, 0, wanted=3.0, worst=1.0) for name in OPERATORS),
    *(
        Target(f"inference, {short}, 224², batch {batch}", (name,), batch, 224, "inference")
        for short, name in (("B0", _B0), ("Lite0", _LITE0))
        for batch in (1, 16)
    ),
    Target("inference, B0, 224², batch 16, bfloat16", (_B0,), 16, 224, "inference", "bfloat16"),
    # What the separate calls take is what the operators are for; the rows have everybody's.
    Target(
        "saved for backward, B0, 224², batch 8",
        (_B0,),
        8,
        224,
        quantity="saved_bytes",
        wanted=1 / 0.45,
        rivals=("eager",),
    ),
    Target(
        "peak memory of a training step, B0, 224², batch 16",
        (_B0,),
        16,
        224,
        quantity="peak_bytes",
        wanted=1 / 0.6,
        rivals=("eager",),
    ),
)


class Verdict(NamedTuple):
    """What was found for a target with one number of threads, on one machine."""

    target: Target
    threads: int
    machine: str
    ratio: float
    least: Comparison
    shapes: int
    reached: bool


def target_cases(threads: Sequence[int] = THREADS, device: str = "cpu") -> list[Case]:
    """Every case that a target needs, once, by number of threads."""
    cases = dict.fromkeys(case for target in TARGETS for case in target.cases(threads, device))
    return sorted(cases, key=lambda case: case.threads)


def memory_wanted(case: Case, threads: Sequence[int] = THREADS) -> bool:
    """Whether a target asks for the memory of ``case``, where these numbers of threads are measured."""
    return any(case in target.cases(threads, case.device) for target in TARGETS if target.quantity != "time")


def verdicts(rows: Iterable[Row]) -> list[Verdict]:
    """Of every target that ``rows`` have every case of."""
    by_case: dict[tuple[object, ...], list[list[Row]]] = {}
    for group in groups(rows):
        by_case.setdefault(_key(group[0]), []).append(group)
    places = dict.fromkeys((g[0].threads, g[0].device, g[0].machine) for found in by_case.values() for g in found)
    judged = []
    for target in TARGETS:
        for threads, device, machine in places:
            cases = target.cases((threads,), device)
            found = [g for case in cases for g in by_case.get(_key(case), []) if g[0].machine == machine]
            comparisons = [c for c in (_compare(target, group) for group in found) if c is not None]
            if len(comparisons) == len(cases):
                judged.append(_judge(target, threads, machine, comparisons))
    return judged


def _key(case: Case | Row) -> tuple[object, ...]:
    return (case.kind, case.name, case.size, case.dtype, case.mode, case.threads, case.device)


def _compare(target: Target, group: Sequence[Row]) -> Comparison | None:
    if target.quantity == "time":
        return compare_times(group, target.rivals)
    return compare_bytes(group, target.quantity, target.rivals)


def _judge(target: Target, threads: int, machine: str, comparisons: Sequence[Comparison]) -> Verdict:
    ratio = mean_ratio(comparisons)
    least = min(comparisons, key=lambda c: c.ratio)
    reached = ratio >= target.wanted and (target.worst is None or least.ratio >= target.worst)
    return Verdict(target, threads, machine, ratio, least, len(comparisons), reached)
