"""What the passes of docs/design.md may move, in units of the tensors' elements."""

from collections.abc import Iterable
from dataclasses import dataclass

from traffic.count import Launch
from traffic.shapes import Shape


@dataclass(frozen=True)
class Tensors:
    """So many times all of u (Ein) and all of out (Eout), read or written."""

    ein: int = 0
    eout: int = 0

    def __add__(self, other: "Tensors") -> "Tensors":
        return Tensors(self.ein + other.ein, self.eout + other.eout)

    def __str__(self) -> str:
        return " + ".join(f"{n} {name}" for n, name in ((self.ein, "Ein"), (self.eout, "Eout")) if n)

    def bytes(self, shape: Shape, images: int, itemsize: int) -> int:
        return (self.ein * shape.ein + self.eout * shape.eout) * images * itemsize


PASSES = {
    "F1": Tensors(ein=1),
    "F2": Tensors(ein=1, eout=1),
    "F3": Tensors(eout=1),
    "F4": Tensors(eout=2),
    "B1": Tensors(eout=2),
    "B2": Tensors(ein=2, eout=2),
    "B3": Tensors(ein=3),
}
INFERENCE = {"F2": Tensors(ein=1, eout=1), "F4": Tensors(eout=2)}

_FIRST_KERNELS = {
    "statistics": "F1",
    "depthwise_forward": "F2",
    "pool": "F3",
    "normalize": "F4",
    "update_running_stats": "running statistics",
    "backward_sums": "B1",
    "depthwise_backward": "B2",
    "input_gradient": "B3",
}


def passes_of(launches: Iterable[Launch]) -> dict[str, list[Launch]]:
    """The launches by pass: one that goes over activations, and the small ones that follow it."""
    passes: dict[str, list[Launch]] = {}
    current = ""
    for launch in launches:
        current = _FIRST_KERNELS.get(launch.kernel, current)
        passes.setdefault(current, []).append(launch)
    return passes


def block(shape: Shape) -> Tensors:
    """Forward and backward together."""
    without = () if shape.bn1 else ("F1", "B3")
    return sum((moved for name, moved in PASSES.items() if name not in without), Tensors())
