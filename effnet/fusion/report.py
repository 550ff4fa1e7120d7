"""What fusing a model did: the patterns that are one operator now, and what was left as it was, and why."""

from collections import Counter, defaultdict
from dataclasses import dataclass


@dataclass(frozen=True)
class FusedPattern:
    """Modules that run as one operator of ``effnet_kernels``, by their names in the model."""

    operator: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class LeftModule:
    """A depthwise convolution, BatchNorm, squeeze-and-excite or block that runs as its library wrote it."""

    name: str
    reason: str


@dataclass(frozen=True)
class FusionReport:
    """What :func:`effnet.fuse` found in a model. ``str()`` is a table of it."""

    fused: tuple[FusedPattern, ...]
    left: tuple[LeftModule, ...]

    def counts(self) -> dict[str, int]:
        """Patterns by operator."""
        return dict(Counter(pattern.operator for pattern in self.fused))

    def __str__(self) -> str:
        rows = [(operator, str(count), "") for operator, count in sorted(self.counts().items())]
        names_by_reason = defaultdict(list)
        for module in self.left:
            names_by_reason[module.reason].append(module.name)
        rows += [("left", str(len(names)), f"{reason}: {_some(names)}") for reason, names in names_by_reason.items()]
        if not rows:
            return "nothing to fuse"
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]}".rstrip() for row in rows)


def _some(names: list[str], shown: int = 3) -> str:
    named = ", ".join(name or "the model itself" for name in names[:shown])
    return named if len(names) <= shown else f"{named} and {len(names) - shown} more"
