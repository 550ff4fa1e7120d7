"""``batch_norm_act`` against its definition in float64."""

import pytest
import torch

from operators.axes import ACTIVATIONS, DTYPES, LAYOUTS, PARAMETERS, SHAPES, off_the_corners
from operators.cases import batch_norm_act_case
from operators.parity import check_parity
from operators.sampling import Row, label, pairwise

BOOLEANS = (True, False)

SAMPLE = pairwise(
    {
        "shape": SHAPES,
        "dtype": DTYPES,
        "layout": LAYOUTS,
        "parameters": PARAMETERS,
        "training": BOOLEANS,
        "activation": ACTIVATIONS,
        "keep": BOOLEANS,
        "residual": BOOLEANS,
        "affine": BOOLEANS,
        "eps": (1e-5, 1e-3),
    },
    valid=off_the_corners,
)


@pytest.mark.parametrize("row", SAMPLE, ids=label)
def test_parity(row: Row) -> None:
    check_parity(batch_norm_act_case(**row))


@pytest.mark.parametrize("row", SAMPLE[::2], ids=label)
def test_parity_without_gradient(row: Row) -> None:
    check_parity(batch_norm_act_case(**row), gradient=False)


@pytest.mark.parametrize("training", BOOLEANS, ids=("training", "frozen"))
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_activation(layout: str, dtype: torch.dtype, activation: str, training: bool) -> None:
    check_parity(
        batch_norm_act_case((3, 17, 6, 5), layout=layout, dtype=dtype, activation=activation, training=training)
    )


def test_activations_reach_their_flat_parts() -> None:
    """ReLU6 and hardswish saturate: the inputs of this case lie on all sides of their corners."""
    for activation in ("relu6", "hardswish"):
        case = batch_norm_act_case((2, 8, 9, 9), activation=activation)
        check_parity(case.with_tensors(gamma=torch.full((8,), 5.0), beta=torch.full((8,), 1.0)))


def test_dropped_samples_pass_the_residual_through() -> None:
    case = batch_norm_act_case((3, 8, 5, 7), keep=True, residual=True)
    assert case.tensors["keep"].tolist() == [0.0, 1.25, 1.25]
    out = case.call(case.tensors)
    assert torch.equal(out[0], case.tensors["residual"][0])
    assert not torch.equal(out[1], case.tensors["residual"][1])


def test_residual_may_need_the_only_gradient() -> None:
    tensors = dict(batch_norm_act_case(residual=True).tensors)
    tensors["residual"].requires_grad_()
    weights = torch.randn_like(tensors["x"])
    out = batch_norm_act_case(residual=True).call(tensors)
    (gradient,) = torch.autograd.grad((out * weights).sum(), tensors["residual"])
    assert torch.equal(gradient, weights)


def test_residual_in_the_other_layout() -> None:
    case = batch_norm_act_case((2, 8, 5, 7), residual=True, layout="channels_last")
    check_parity(case.with_tensors(residual=case.tensors["residual"].contiguous()))
