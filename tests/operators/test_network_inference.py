"""A network in inference as one operator, beside its layers one after the other."""

from dataclasses import replace

import pytest
import torch

from effnet_kernels.ops.prepared_network import PreparedNetwork
from operators.network_cases import CLASSES, check, classifier, layers, pictures


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_computes_what_its_layers_do(dtype: torch.dtype) -> None:
    check(dtype)


def test_pictures_of_any_strides() -> None:
    network = PreparedNetwork.make(layers(torch.float32), classifier(torch.float32))
    x = pictures(4, 40, 60, torch.float32)[::2, :, 3:35:2, 5:50]
    expected = network(x.contiguous())
    assert torch.equal(network(x), expected)
    assert torch.equal(network(x.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("batch", [1, 3, 9])
def test_the_same_bits_for_any_number_of_threads_and_any_batch(batch: int) -> None:
    network = PreparedNetwork.make(layers(torch.float32), classifier(torch.float32))
    x = pictures(9, 75, 64, torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = network(x)
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(network(x[:batch]), expected[:batch])
    finally:
        torch.set_num_threads(threads)


def test_the_input_is_left_alone() -> None:
    network = PreparedNetwork.make(layers(torch.float32), classifier(torch.float32))
    x = pictures(2, 20, 20, torch.float32)
    before = x.clone()
    network(x)
    assert torch.equal(x, before)


def test_plans_of_many_sizes_do_not_pile_up() -> None:
    network = PreparedNetwork.make(layers(torch.float32), classifier(torch.float32))
    for width in range(4, 104):
        network(pictures(1, 4, width, torch.float32))
    assert len(network._plans) <= 64


def test_schema_and_fake() -> None:
    network = PreparedNetwork.make(layers(torch.float32), classifier(torch.float32))
    arguments = (pictures(2, 9, 9, torch.float32), network.weights, network._plan(9, 9), CLASSES)
    torch.library.opcheck(torch.ops.effnet_kernels.network_inference.default, arguments)


KIND, OUT_CHANNELS, KERNEL, STRIDE, TOP, ACTIVATION, BFLOAT16, RESIDUAL, CHANNELS = 0, 1, 2, 3, 4, 8, 9, 10, 11


@pytest.mark.parametrize(
    ("row", "column", "value", "named"),
    [
        (0, KIND, 3, "plan"),
        (0, KIND, 1, "x|kernel_size|channels"),
        (0, RESIDUAL, 2, "plan"),
        (0, RESIDUAL, 1, "plan"),
        (2, RESIDUAL, -1, "plan"),
        (3, RESIDUAL, 1, "plan"),
        (0, OUT_CHANNELS, 2**40, "out_channels"),
        (1, CHANNELS, 2**62, "channels"),
        (1, RESIDUAL, 7, "plan"),
        (0, KERNEL, 129, "kernel_size"),
        (0, STRIDE, 0, "stride"),
        (0, TOP, -1, "padding"),
        (0, ACTIVATION, 99, "activation"),
        (4, BFLOAT16, 1, "bfloat16_products"),
        (4, BFLOAT16, 5, "plan"),
        (7, KIND, 0, "out_channels"),
        (8, OUT_CHANNELS, 20, "weights|plan"),
    ],
)
def test_bad_plans_are_refused_before_anything_runs(row: int, column: int, value: int, named: str) -> None:
    network = PreparedNetwork.make(layers(torch.float32), classifier(torch.float32))
    plan = network._plan(9, 9)
    plan[row, column] = value
    with pytest.raises(RuntimeError, match=f"({named}): "):
        torch.ops.effnet_kernels.network_inference(pictures(1, 9, 9, torch.float32), network.weights, plan, CLASSES)


def test_bad_arguments_are_refused() -> None:
    network = PreparedNetwork.make(layers(torch.float32), classifier(torch.float32))
    x, plan = pictures(1, 9, 9, torch.float32), network._plan(9, 9)
    call = torch.ops.effnet_kernels.network_inference
    for arguments, named in (
        ((x.double(), network.weights, plan, CLASSES), "x"),
        ((x[:, :2], network.weights, plan, CLASSES), "weights"),
        ((x, network.weights[:-16], plan, CLASSES), "weights"),
        ((x, torch.cat([network.weights, torch.zeros(16)]), plan, CLASSES), "weights"),
        ((x, network.weights.half(), plan, CLASSES), "weights"),
        ((x, network.weights, plan[:, :-1], CLASSES), "plan"),
        ((x, network.weights, plan[:0], CLASSES), "plan"),
        ((x, network.weights, plan.int(), CLASSES), "plan"),
        ((x, network.weights, plan.flip(1), CLASSES), "plan|x|kernel_size|stride|channels|out_channels"),
        ((x, network.weights, plan, CLASSES + 1), "plan"),
    ):
        with pytest.raises(RuntimeError, match=f"({named}): "):
            call(*arguments)


def test_a_layer_keeps_its_weights() -> None:
    features = layers(torch.float32)
    copies = [replace(each.layer, weights=each.layer.weights.clone()) for each in features]
    PreparedNetwork.make(features, classifier(torch.float32))
    for each, copy in zip(features, copies, strict=True):
        assert torch.equal(each.layer.weights, copy.weights)
