"""``squeeze_excite`` against its definition in float64."""

import pytest
import torch

from operators.axes import ACTIVATIONS, DTYPES, GATES, LAYOUTS, PARAMETERS, SHAPES
from operators.cases import squeeze_excite_case
from operators.parity import check_parity
from operators.sampling import Row, label, pairwise

SAMPLE = pairwise(
    {
        "shape": SHAPES,
        "squeezed": (1, 4, 10, 33),
        "dtype": DTYPES,
        "layout": LAYOUTS,
        "parameters": PARAMETERS,
        "weights": ("matrix", "convolution"),
        "activation": ACTIVATIONS,
        "gate": GATES,
    }
)


@pytest.mark.parametrize("row", SAMPLE, ids=label)
def test_parity(row: Row) -> None:
    check_parity(squeeze_excite_case(**row))


@pytest.mark.parametrize("row", SAMPLE[::2], ids=label)
def test_parity_without_gradient(row: Row) -> None:
    check_parity(squeeze_excite_case(**row), gradient=False)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_activation_and_gate(layout: str, activation: str, gate: str) -> None:
    check_parity(squeeze_excite_case((3, 17, 6, 5), layout=layout, activation=activation, gate=gate))


def test_hardsigmoid_reaches_its_flat_parts() -> None:
    """Gates of exactly 0 and 1 stop the gradient to the layers, but not the one through the scale."""
    case = squeeze_excite_case((2, 8, 5, 7), gate="hardsigmoid")
    case = case.with_tensors(b2=torch.tensor([-9.0, 9.0] * 4))
    out = case.call(case.tensors)
    assert torch.equal(out[:, 0::2], torch.zeros_like(out[:, 0::2]))
    assert torch.equal(out[:, 1::2], case.tensors["x"][:, 1::2])
    check_parity(case)


def test_pooling_keeps_float32_accuracy_over_many_half_values() -> None:
    """A mean over 10^4 values near 1 in bfloat16 would stall at 256 if it were accumulated in bfloat16."""
    x = torch.ones(1, 3, 100, 100, dtype=torch.bfloat16)
    case = squeeze_excite_case((1, 3, 100, 100), dtype=torch.bfloat16).with_tensors(x=x)
    check_parity(case)
