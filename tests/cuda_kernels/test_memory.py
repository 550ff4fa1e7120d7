"""Tensors that are not dense, or begin anywhere in a vector, and gradients in any layout."""

from typing import Any

import pytest
import torch
from torch import Tensor

from operators.axes import LAYOUTS
from operators.cases import CASES, Shape, mbconv_core_case
from operators.parity import check_parity, weighted_sum
from operators.sampling import label
from operators.test_memory import (  # noqa: F401
    test_backward_twice_from_the_same_saved_tensors,
    test_gradients_in_any_layout,
    test_saved_tensors,
    test_views,
)

ALIGNMENT = 16
OFFSETS = [
    (torch.float32, 4),
    (torch.float32, 8),
    (torch.bfloat16, 2),
    (torch.bfloat16, 4),
    (torch.bfloat16, 8),
    (torch.float16, 2),
]
SHAPES = ((2, 16, 6, 8), (2, 17, 5, 7), (1, 24, 7, 16))
"""Channels and rows that every vector divides, that none does, and channels only."""


COINCIDING = ((2, 1, 5, 4), (3, 8, 1, 1), (1, 1, 3, 3), (2, 5, 1, 9))
"""One channel or one pixel: NCHW and channels_last are the same memory, whatever the strides say."""


def begun_at(x: Tensor, offset: int) -> Tensor:
    """A copy of ``x`` in its strides that begins ``offset`` bytes behind a multiple of ALIGNMENT."""
    memory = x.new_empty(x.numel() + offset // x.element_size())
    copy = memory.as_strided(x.shape, x.stride(), offset // x.element_size()).copy_(x)
    assert copy.data_ptr() % ALIGNMENT == offset
    return copy


class BegunAt(torch.autograd.Function):
    """The identity, whose gradient begins ``offset`` bytes behind a multiple of ALIGNMENT."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, offset: int) -> Tensor:
        ctx.offset = offset
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return begun_at(grad, ctx.offset), None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=label)
@pytest.mark.parametrize(("dtype", "offset"), OFFSETS, ids=label)
@pytest.mark.parametrize("operator", CASES)
def test_offsets(operator: str, dtype: torch.dtype, offset: int, shape: Shape, layout: str) -> None:
    """Every tensor, then the activations alone, then the gradient alone."""
    options = {"residual": True, "keep": True} if operator == "batch_norm_act" else {}
    case = CASES[operator](shape, dtype=dtype, layout=layout, parameters="same", **options)
    check_parity(case.with_tensors(**{name: begun_at(t, offset) for name, t in case.tensors.items()}))
    case = CASES[operator](shape, dtype=dtype, layout=layout, **options)
    check_parity(case.with_tensors(x=begun_at(case.tensors["x"], offset)), gradient=False)
    check_parity(case, loss=lambda out: weighted_sum(BegunAt.apply(out, offset)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", CASES)
def test_one_misaligned_tensor_of_several(operator: str, layout: str) -> None:
    """Vectors are only used where every tensor of the call allows them."""
    for name in ("x", "residual"):
        options = {"residual": True} if operator == "batch_norm_act" else {}
        case = CASES[operator]((2, 16, 6, 8), layout=layout, **options)
        if name in case.tensors:
            check_parity(case.with_tensors(**{name: begun_at(case.tensors[name], 4)}))


def one_sided(out: Tensor) -> Tensor:
    """Gradients that do not cancel in a single channel's sum of a few terms, of which rounding would be left."""
    return (out * torch.linspace(0.5, 1.5, out.numel(), dtype=out.dtype).view(out.shape)).sum()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", COINCIDING, ids=label)
@pytest.mark.parametrize("operator", CASES)
def test_layouts_that_coincide(operator: str, shape: Shape, layout: str) -> None:
    options = {} if operator == "squeeze_excite" else {"eps": 0.1}
    check_parity(CASES[operator](shape, layout=layout, **options), loss=one_sided)


def every_other(t: Tensor) -> Tensor:
    """The values of ``t``, two apart in every dimension."""
    return t.new_empty([2 * size for size in t.shape])[tuple(slice(None, None, 2) for _ in t.shape)].copy_(t)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=label)
def test_strided_parameters(dtype: torch.dtype, layout: str) -> None:
    """Slices, transposed matrices and reversed kernels' strides: values and gradients end up where they belong."""
    case = mbconv_core_case((2, 17, 9, 8), dtype=dtype, layout=layout)
    parameters = {name: t for name, t in case.tensors.items() if name != "x"}
    check_parity(case.with_tensors(**{name: every_other(t) for name, t in parameters.items()}))
    transposed = {name: t.mT.contiguous().mT for name, t in parameters.items() if t.dim() > 1}
    assert not any(t.is_contiguous() for t in transposed.values())
    check_parity(case.with_tensors(**transposed))
