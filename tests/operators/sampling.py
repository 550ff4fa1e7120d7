"""Parametrisations: samples of a product of axes in which every pair of values occurs, and names for their rows."""

import random
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

Row = dict[str, Any]


def pairwise(axes: dict[str, Sequence[Any]], valid: Callable[[Row], bool] = lambda row: True) -> list[Row]:
    """Rows of the product of ``axes`` in which every pair of values of two axes occurs, if a valid row has it.

    Greedy and deterministic; about as many rows as the product of the two longest axes.
    """
    chooser = random.Random(0)
    names = list(axes)

    def values(choice: dict[str, int]) -> Row:
        return {name: axes[name][index] for name, index in choice.items()}

    def pairs(choice: dict[str, int]) -> set[tuple[str, int, str, int]]:
        return {(a, choice[a], b, choice[b]) for a, b in combinations(names, 2)}

    uncovered = {
        (a, i, b, j) for a, b in combinations(names, 2) for i in range(len(axes[a])) for j in range(len(axes[b]))
    }
    rows: list[Row] = []
    while uncovered:
        a, i, b, j = min(uncovered)
        candidates = []
        for _ in range(60):
            choice = {name: chooser.randrange(len(axes[name])) for name in names} | {a: i, b: j}
            if valid(values(choice)):
                candidates.append(choice)
        if not candidates:
            uncovered.discard((a, i, b, j))
            continue
        best = max(candidates, key=lambda choice: len(pairs(choice) & uncovered))
        uncovered -= pairs(best)
        rows.append(values(best))
    return rows


def label(value: Any) -> str:
    """A test's name from a row or a value: shapes as 2x8x5x7, dtypes without ``torch.``."""
    if isinstance(value, dict):
        return "-".join(f"{name}={label(v)}" for name, v in value.items())
    if isinstance(value, tuple):
        return "x".join(label(v) for v in value)
    return str(value).removeprefix("torch.")
