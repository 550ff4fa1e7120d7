"""Every kernel size, stride, dtype and layout of ``mbconv_core``, with and without its optional parts."""

from itertools import combinations, product

import pytest
import torch

from operators.axes import ACTIVATIONS, GATES, LAYOUTS
from operators.cases import mbconv_core_case
from operators.parity import check_parity
from operators.sampling import Row, label

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((3, 1, 13, 9), (2, 3, 11, 14), (1, 24, 15, 12), (2, 40, 9, 17), (2, 1152, 7, 5))
"""Few channels and many, not all of them divided by a vector; odd sizes; a batch of one."""


def every_combination() -> list[Row]:
    """The first seven axes in full; the others run along them, so that each pair with one of their values occurs."""
    parts = (("matrix", None), ("training", None))
    rows = product((3, 5, 7), (1, 2), ACTIVATIONS, DTYPES, LAYOUTS, *parts)
    names = ("kernel", "stride", "activation", "dtype", "layout", "se", "bn1")
    return [
        {**dict(zip(names, row, strict=True)), "shape": SHAPES[number // 7 % 5], "gate": GATES[number // 5 % 2]}
        for number, row in enumerate(rows)
    ]


ROWS = every_combination()


def test_every_pair_occurs() -> None:
    axes = {name: {row[name] for row in ROWS} for name in ROWS[0]}
    for a, b in combinations(axes, 2):
        assert {(row[a], row[b]) for row in ROWS} == set(product(axes[a], axes[b])), (a, b)


@pytest.mark.parametrize("row", ROWS, ids=label)
def test_training(row: Row) -> None:
    """What scales as its argument does, between two BatchNorms in training, has its scale undone by the second.

    The gradient of γ1 is then a sum that cancels: all of it under the identity, and under relu or relu6 so much that
    for a single channel, which has no other gradient to be small against, eager PyTorch's own is off by 1e-5.
    """
    scales = row["activation"] == "identity" or (row["activation"] in ("relu", "relu6") and row["shape"][1] == 1)
    bn2 = "frozen" if scales else "training"
    check_parity(mbconv_core_case(**row, bn2=bn2))


@pytest.mark.parametrize("row", ROWS, ids=label)
def test_inference(row: Row) -> None:
    check_parity(mbconv_core_case(**{**row, "bn1": row["bn1"] and "frozen"}, bn2="frozen"), gradient=False)
