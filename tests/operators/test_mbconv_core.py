"""``mbconv_core`` against its definition in float64."""

import pytest
import torch

import effnet_kernels as ek
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
from operators.cases import Stored, batch_norm_of, mbconv_core_case
from operators.parity import check_identical, check_parity, evaluate, in_float64
from operators.sampling import Row, label, pairwise
from tolerances import TOLERANCES, assert_close


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
    check_identical(evaluate(shipped, tensors), evaluate(lambda t: case.define(t, Stored()), tensors))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=label)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bn1", ["frozen", None])
def test_unscaled(bn1: str | None, layout: str, dtype: torch.dtype, backend: str) -> None:
    """z and s of the formula: z is the operator without SE, z · s the operator."""
    case = mbconv_core_case((2, 24, 9, 7), stride=2, bn1=bn1, bn2="frozen", layout=layout, dtype=dtype)
    t = case.tensors
    bn2 = batch_norm_of(t, "2", False, 0.1, 1e-5)
    given = None if bn1 is None else batch_norm_of(t, "1", False, 0.1, 1e-5)
    se = ek.SqueezeExcite(t["w1"], t["b1"], t["w2"], t["b2"])
    ek.set_backend(backend)
    z, scale = ek.mbconv_core_unscaled(t["x"], t["w"], bn2, se, bn1=given, stride=2)
    assert torch.equal(z, ek.mbconv_core(t["x"], t["w"], bn2, bn1=given, stride=2))
    assert scale.shape == (2, 24) and scale.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    scaled = ek.mbconv_core(t["x"], t["w"], bn2, bn1=given, se=se, stride=2)
    assert_close(z.double() * scale.double()[:, :, None, None], scaled, TOLERANCES[dtype].forward, "z · s")


def test_unscaled_refuses_training_and_gradients() -> None:
    t = mbconv_core_case(bn1=None, bn2="frozen").tensors
    se = ek.SqueezeExcite(t["w1"], t["b1"], t["w2"], t["b2"])
    with pytest.raises(ValueError, match="bn2: expected running statistics"):
        ek.mbconv_core_unscaled(t["x"], t["w"], batch_norm_of(t, "2", True, 0.1, 1e-5), se)
    frozen = batch_norm_of(t, "2", False, 0.1, 1e-5)
    with pytest.raises(ValueError, match="se: expected squeeze-and-excite's weights, got None"):
        ek.mbconv_core_unscaled(t["x"], t["w"], frozen, None)
    with pytest.raises(RuntimeError, match="has no gradient"):
        ek.mbconv_core_unscaled(t["x"].requires_grad_(), t["w"], frozen, se)
