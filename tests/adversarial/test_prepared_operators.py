"""The inference operators over prepared weights, called as ``torch.ops.effnet_kernels.*`` with bad arguments."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adversarial.test_raw_operators import call, changes_of
from effnet_kernels.ops.prepared import PreparedConv
from effnet_kernels.ops.prepared_network import PreparedNetwork
from operators.inference_cases import ConvCase, MBConvCase
from operators.network_cases import classifier, layers

Call = tuple[str, tuple[Any, ...]]


def mbconv_call(**options: Any) -> Call:
    case = MBConvCase(**options)
    p = case.prepare()
    settings = (p.activation, p.gate, p.expands, p.residual, p.bfloat16_products)
    return "mbconv_inference", (case.x, p.weights, *p.sizes, case.pads, *settings)


def conv_call(**options: Any) -> Call:
    case = ConvCase(layout="channels_last", **options)
    p = PreparedConv.make(case.layer.weight, case.layer.bn, stride=case.stride, activation="silu", dtype=case.dtype)
    sizes = (p.out_channels, p.kernel_size, p.stride)
    return "conv_inference", (case.x, p.weights, None, *sizes, case.pads, p.activation, p.bfloat16_products)


def network_call() -> Call:
    network = PreparedNetwork.make(layers(torch.float32), classifier(torch.float32))
    return "network_inference", (torch.randn(2, 3, 9, 11), network.weights, network._plan(9, 11), network.classes)


CALLS = (
    mbconv_call(),
    mbconv_call(expands=False, residual=True, dtype=torch.float16),
    mbconv_call(dtype=torch.bfloat16, stride=2, squeezed=0),
    conv_call(),
    conv_call(shape=(2, 12, 5, 7), kernel=1, dtype=torch.bfloat16),
    network_call(),
)


@given(st.data())
def test_bad_arguments(data: st.DataObject) -> None:
    name, arguments = data.draw(st.sampled_from(CALLS), "call")
    places = data.draw(st.lists(st.integers(0, len(arguments) - 1), min_size=1, max_size=2, unique=True), "places")
    arguments = tuple(data.draw(changes_of(a), "change") if place in places else a for place, a in enumerate(arguments))
    call(name, arguments)


@given(st.data())
def test_bad_plans(data: st.DataObject) -> None:
    name, (x, weights, plan, classes) = CALLS[-1]
    plan = plan.clone()
    row = data.draw(st.integers(0, plan.shape[0] - 1), "row")
    column = data.draw(st.integers(0, plan.shape[1] - 1), "column")
    plan[row, column] = data.draw(st.integers(-3, 130) | st.integers(-(2**63), 2**63 - 1), "value")
    call(name, (x, weights, plan, classes))


@pytest.mark.parametrize("good", CALLS, ids=lambda good: good[0])
def test_good_arguments(good: Call) -> None:
    assert call(*good)


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (0, torch.zeros(2, 0, 9, 7), "x"),
        (0, torch.zeros(2, 12, 0, 7), "x"),
        (0, torch.zeros(0, 2**40, 3, 3), "x"),
        (0, torch.zeros(2, 12, 9, 7), "x"),
        (1, torch.zeros(7), "weights"),
        (2, 2**62, "channels"),
        (3, 0, "out_channels"),
        (4, 2**40, "squeezed"),
        (5, 4, "kernel_size"),
        (6, 0, "stride"),
        (7, (2**62, 0, 0, 0), "padding"),
        (8, 77, "activation"),
        (9, 3, "gate"),
        (10, False, "x"),
        (12, True, "bfloat16_products"),
    ],
)
def test_what_a_block_refuses(place: int, value: Any, named: str) -> None:
    name, arguments = CALLS[0]
    with pytest.raises(RuntimeError, match=f"{named}: "):
        getattr(torch.ops.effnet_kernels, name)(*arguments[:place], value, *arguments[place + 1 :])


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (0, torch.zeros(2, 0, 9, 11), "x"),
        (0, torch.zeros(2, 3, 9, 11, dtype=torch.int64), "x"),
        (1, torch.zeros(7), "weights"),
        (1, torch.zeros(4096), "weights"),
        (2, torch.zeros(1, 2, 3, 4), "residual"),
        (3, 2**62, "out_channels"),
        (4, 2**40, "kernel_size"),
        (5, -1, "stride"),
        (5, 2**62, "stride"),
        (6, (1, 1, 1, 3), "padding"),
        (7, -1, "activation"),
        (8, True, "bfloat16_products"),
    ],
)
def test_what_a_convolution_refuses(place: int, value: Any, named: str) -> None:
    name, arguments = CALLS[3]
    with pytest.raises(RuntimeError, match=f"{named}: "):
        getattr(torch.ops.effnet_kernels, name)(*arguments[:place], value, *arguments[place + 1 :])
