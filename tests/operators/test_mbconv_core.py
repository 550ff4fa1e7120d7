"""``mbconv_core`` against its definition in float64."""

import pytest
import torch

from effnet_kernels import reference
from effnet_kernels.arguments import symmetric_padding
from operators.axes import (
    ACTIVATIONS,
    DTYPES,
    GATES,
    LAYOUTS,
    PADDINGS,
    PARAMETERS,
    SHAPES,
    fits,
    geometry,
    off_the_corners,
    undone,
)
from operators.cases import batch_norm_of, mbconv_core_case
from operators.parity import check_identical, check_parity, evaluate, in_float64
from operators.sampling import Row, label, pairwise


def well_posed(row: Row) -> bool:
    """Not an identity between two BatchNorms in training: the second undoes the first, whose gradients are then 0."""
    training = row["bn2"] == "training"
    cancels = row["activation"] == "identity" and training
    return fits(row) and off_the_corners(row) and not undone(row, training) and not cancels


SAMPLE = pairwise(
    {
        "shape": SHAPES,
        "kernel": (3, 5, 7),
        "stride": (1, 2),
        "padding": PADDINGS,
        "dtype": DTYPES,
        "layout": LAYOUTS,
        "parameters": PARAMETERS,
        "bn1": ("training", "frozen", None),
        "bn2": ("training", "frozen"),
        "se": ("matrix", "convolution", None),
        "squeezed": (1, 4, 10),
        "activation": ACTIVATIONS,
        "gate": GATES,
        "affine": (True, False),
    },
    valid=well_posed,
)


@pytest.mark.parametrize("row", SAMPLE, ids=label)
def test_parity(row: Row) -> None:
    check_parity(mbconv_core_case(**geometry(row)))


@pytest.mark.parametrize("row", SAMPLE[::2], ids=label)
def test_parity_without_gradient(row: Row) -> None:
    check_parity(mbconv_core_case(**geometry(row)), gradient=False)


@pytest.mark.parametrize("gradient", [True, False], ids=("gradient", "no_gradient"))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("se", ["matrix", None], ids=("se", "no_se"))
@pytest.mark.parametrize("bn2", ["training", "frozen"])
@pytest.mark.parametrize("bn1", ["training", "frozen", None])
def test_parts(bn1: str | None, bn2: str, se: str | None, layout: str, gradient: bool) -> None:
    """Every combination of what may be there and what may be frozen, each BatchNorm on its own."""
    check_parity(mbconv_core_case((3, 17, 8, 7), bn1=bn1, bn2=bn2, se=se, layout=layout), gradient=gradient)


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=label)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ["silu", "relu6", "hardswish"])
def test_half_types(activation: str, layout: str, dtype: torch.dtype, parameters: str) -> None:
    """Half activations with float32 parameters, and half everything; gradients come in each tensor's own dtype."""
    check_parity(
        mbconv_core_case(
            (2, 24, 14, 14),
            kernel=5,
            stride=2,
            padding=(1, 2, 1, 2),
            dtype=dtype,
            layout=layout,
            parameters=parameters,
            activation=activation,
        )
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_and_gate(activation: str, gate: str, layout: str) -> None:
    check_parity(mbconv_core_case((2, 8, 9, 8), activation=activation, gate=gate, layout=layout))


def test_zeros_around_the_image_are_outside_bn1() -> None:
    """Padding is zeros after BN1 and its activation, not zeros before them: here β1 would show."""
    case = mbconv_core_case((2, 8, 6, 6), bn1="frozen", bn2="frozen", se=None, kernel=5)
    check_parity(case.with_tensors(beta1=torch.full((8,), 3.0)))


def test_the_tests_definition_is_the_reference() -> None:
    """Where y is not rounded, what these tests compare with is the reference that ships, bit for bit."""
    case = mbconv_core_case((2, 8, 9, 7), dtype=torch.float64, stride=2)

    def shipped(t: dict[str, torch.Tensor]) -> torch.Tensor:
        bn1, bn2 = (batch_norm_of(t, suffix, True, 0.1, 1e-5) for suffix in ("1", "2"))
        se = (t["w1"], t["b1"], t["w2"], t["b2"])
        return reference.mbconv_core(t["x"], t["w"], bn2, bn1, se, 2, symmetric_padding(3))

    tensors = in_float64(case.tensors)
    check_identical(evaluate(shipped, tensors), evaluate(lambda t: case.define(t, torch.float64), tensors))
