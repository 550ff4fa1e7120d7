"""``depthwise_conv_bn_act`` against its definition in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import effnet_kernels as ek
from effnet_kernels.arguments import Padding, output_size
from operators.axes import (
    ACTIVATIONS,
    DTYPES,
    LAYOUTS,
    PADDINGS,
    PARAMETERS,
    SHAPES,
    fits,
    geometry,
    off_the_corners,
    padding,
    undone,
)
from operators.cases import Shape, depthwise_conv_bn_act_case
from operators.parity import check_parity
from operators.sampling import Row, label, pairwise

BOOLEANS = (True, False)

SAMPLE = pairwise(
    {
        "shape": SHAPES,
        "kernel": (3, 5, 7),
        "stride": (1, 2),
        "padding": PADDINGS,
        "dtype": DTYPES,
        "layout": LAYOUTS,
        "parameters": PARAMETERS,
        "training": BOOLEANS,
        "activation": ACTIVATIONS,
        "affine": BOOLEANS,
    },
    valid=lambda row: fits(row) and off_the_corners(row) and not undone(row, row["training"]),
)


@pytest.mark.parametrize("row", SAMPLE, ids=label)
def test_parity(row: Row) -> None:
    check_parity(depthwise_conv_bn_act_case(**geometry(row)))


@pytest.mark.parametrize("row", SAMPLE[::2], ids=label)
def test_parity_without_gradient(row: Row) -> None:
    check_parity(depthwise_conv_bn_act_case(**geometry(row)), gradient=False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PADDINGS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_geometry(kernel: int, stride: int, name: str, layout: str) -> None:
    """Every kernel, stride and padding, on an even by odd image with a channel more than a vector holds."""
    pads = padding(name, kernel)
    check_parity(depthwise_conv_bn_act_case((2, 17, 12, 11), kernel=kernel, stride=stride, padding=pads, layout=layout))


@st.composite
def geometries(draw: st.DrawFn) -> tuple[Shape, int, int, Padding, str, torch.dtype]:
    kernel = draw(st.sampled_from((3, 5, 7)))
    stride = draw(st.sampled_from((1, 2)))
    pads = draw(st.tuples(*[st.integers(0, kernel - 1)] * 4))
    height = draw(st.integers(max(1, kernel - pads[0] - pads[1]), 21))
    width = draw(st.integers(max(1, kernel - pads[2] - pads[3]), 37))
    outputs = output_size(height, kernel, stride, pads[0] + pads[1]) * output_size(
        width, kernel, stride, pads[2] + pads[3]
    )
    # Of a sum of a few terms, all may cancel to less than their rounding.
    batch = draw(st.integers(1, 3)) if outputs >= 8 else 8
    shape = (batch, draw(st.integers(1, 35)), height, width)
    return shape, kernel, stride, pads, draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(DTYPES))


@settings(max_examples=80, derandomize=True, deadline=None, database=None)
@given(geometries())
def test_any_geometry(drawn: tuple[Shape, int, int, Padding, str, torch.dtype]) -> None:
    """Frozen statistics and no activation, because some of these images leave a single output pixel."""
    shape, kernel, stride, pads, layout, dtype = drawn
    check_parity(
        depthwise_conv_bn_act_case(
            shape,
            kernel=kernel,
            stride=stride,
            padding=pads,
            layout=layout,
            dtype=dtype,
            training=False,
            activation="identity",
        )
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_same_padding_is_tensorflows(kernel: int, layout: str) -> None:
    """At stride 2 and an even size the odd row and column of zeros come last, not first."""
    pads = padding("same", kernel)
    assert pads[0] + 1 == pads[1]
    last = depthwise_conv_bn_act_case((2, 8, 12, 12), kernel=kernel, stride=2, padding=pads, layout=layout)
    first = depthwise_conv_bn_act_case((2, 8, 12, 12), kernel=kernel, stride=2, padding=pads[::-1], layout=layout)
    assert last.call(last.tensors).shape[2:] == (6, 6)
    assert not torch.allclose(last.call(last.tensors), first.call(first.tensors), atol=0.1)
    check_parity(last)
    check_parity(first)


def test_padding_forms_agree() -> None:
    """None is half the kernel, and one number serves all four sides."""
    t = depthwise_conv_bn_act_case(kernel=5).tensors
    results = [
        ek.depthwise_conv_bn_act(t["x"], t["w"], None, None, None, None, padding=form)
        for form in (None, 2, (2, 2, 2, 2), [2, 2, 2, 2])
    ]
    assert all(torch.equal(result, results[0]) for result in results[1:])
