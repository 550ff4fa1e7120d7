"""Frozen BatchNorm and frozen parameters: the gradients that are left are the same, and no others are computed."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import effnet_kernels as ek
from effnet.blocks import MBConv
from networks import agree, images, small
from operators.recording import Recorder

F64 = torch.float64


@pytest.fixture(autouse=True)
def compiled_backend() -> None:
    if ek.backends()["cpu"] is not None:
        pytest.skip(f"no cpu backend: {ek.backends()['cpu']}")


def quiet(**arguments: object) -> nn.Module:
    return small(dtype=F64, dropout=0.0, drop_connect=0.0, **arguments)  # type: ignore[arg-type, no-any-return]


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model(x).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def backward_calls(model: nn.Module, x: Tensor) -> list[str]:
    """The backward operators of a step, the last layer's first."""
    loss = model(x).square().sum()
    with Recorder() as recorder:
        loss.backward()
    return [name for name, _ in recorder.calls if name.endswith("_backward")]


@pytest.mark.parametrize("names", [("stem", "stages.1", "stages.2.0"), ("",)], ids=("some", "all"))
def test_frozen_batch_norm(names: tuple[str, ...]) -> None:
    """BatchNorm in evaluation inside a network in training: its statistics are constants and stay as they are."""
    results = []
    for fused in (True, False):
        model = quiet(fused=fused)
        frozen = [m for n in names for m in model.get_submodule(n).modules() if isinstance(m, nn.BatchNorm2d)]
        for module in frozen:
            module.eval()
        before = [t.clone() for m in frozen for t in m.buffers()]
        x = images(dtype=F64).requires_grad_()
        found = gradients(model, x)
        assert all(torch.equal(a, b) for a, b in zip(before, (t for m in frozen for t in m.buffers()), strict=True))
        results.append({**found, "x": x.grad, **dict(model.named_buffers())})
    assert results[0].keys() == results[1].keys()
    for name, t in results[1].items():
        agree(results[0][name], t)


FREEZES: dict[str, Callable[[str], bool]] = {
    "stem_and_first_stage": lambda name: name.startswith(("stem", "stages.0")),
    "all_but_classifier": lambda name: not name.startswith("classifier"),
    "a_block_in_the_middle": lambda name: name.startswith("stages.1"),
    "convolutions": lambda name: "conv" in name or "squeeze" in name,
    "batch_norm": lambda name: ".bn." in name,
    "all_but_one_convolution": lambda name: name != "stages.2.0.depthwise.conv.weight",
    "all_but_one_shift": lambda name: name != "stages.2.0.expand.bn.bias",
}


@pytest.mark.parametrize("training", [True, False], ids=("training", "evaluation"))
@pytest.mark.parametrize("freeze", FREEZES)
def test_frozen_parameters(freeze: str, training: bool) -> None:
    """What is left has the gradient it has among all, and what is frozen has none."""
    x = images(dtype=F64)
    expected = gradients(quiet(fused=False).train(training), x)
    model = quiet().train(training)
    for name, p in model.named_parameters():
        p.requires_grad_(not FREEZES[freeze](name))
    found = gradients(model, x)
    assert set(found) == {name for name in expected if not FREEZES[freeze](name)}
    for name, t in found.items():
        agree(t, expected[name])


def test_nothing_runs_backward_through_what_is_frozen() -> None:
    """Layers before the first trainable one have no backward; without any, no operator has."""
    x = images(dtype=F64)
    model = quiet()
    # Head, three MBConv blocks with their projections' BatchNorm, two layers of a Fused-MBConv block, and the stem.
    assert backward_calls(model, x) == [
        *("batch_norm_act_backward", "pointwise_conv_backward"),
        *("batch_norm_act_backward", "mbconv_backward") * 3,
        *("batch_norm_act_backward", "pointwise_conv_backward", "batch_norm_act_backward"),
        "batch_norm_act_backward",
    ]
    model.stem.requires_grad_(False)
    model.stages[:2].requires_grad_(False)
    assert backward_calls(model, x) == [
        *("batch_norm_act_backward", "pointwise_conv_backward"),
        *("batch_norm_act_backward", "mbconv_backward") * 2,
    ]
    model.stages.requires_grad_(False)
    model.head.requires_grad_(False)
    assert backward_calls(model, x) == []


def test_gradients_of_frozen_matrices_are_not_computed() -> None:
    """Where only the image's gradient is wanted, no product computes a weight's."""
    model = quiet().requires_grad_(False)
    x = images(dtype=F64).requires_grad_()
    loss = model(x).square().sum()
    with Recorder() as recorder:
        loss.backward()
    blocks = [arguments for name, arguments in recorder.calls if name == "mbconv_backward"]
    assert [arguments[-3:] for arguments in blocks] == [(True, False, False)] * 3
    products = [arguments for name, arguments in recorder.calls if name == "pointwise_conv_backward"]
    # The head's, and a Fused-MBConv block's projection.
    assert [arguments[-2:] for arguments in products] == [(True, False)] * 2
    assert x.grad is not None
    twin, leaf = quiet(fused=False), images(dtype=F64).requires_grad_()
    twin(leaf).square().sum().backward()
    assert leaf.grad is not None
    agree(x.grad, leaf.grad)


@pytest.mark.parametrize("expands", [True, False], ids=["expand", "no expand"])
def test_each_gradient_of_a_block_alone(expands: bool) -> None:
    """Those of x and of the 1×1 weights are the same whether or not the others are computed, which come out empty."""
    block = next(m for m in quiet().modules() if isinstance(m, MBConv) and (m.expand is not None) == expands)
    x = torch.randn(
        2, block.project.conv.in_channels if not expands else block.expand.conv.in_channels, 6, 5, dtype=F64
    )
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    with Recorder() as recorder:
        block(x).square().sum().backward()
    arguments = next(arguments for name, arguments in recorder.calls if name == "mbconv_backward")
    run = torch.ops.effnet_kernels.mbconv_backward
    everything = run(*arguments[:-3], True, True, True)
    for needs in itertools.product((True, False), repeat=3):
        found = run(*arguments[:-3], *needs)
        wanted = dict(zip((0, 1, 11), needs, strict=True))
        for place, (a, b) in enumerate(zip(found, everything, strict=True)):
            # Without an expansion dx is what the depthwise convolution's pass writes.
            if wanted.get(place, True) or (place == 0 and not expands):
                assert torch.equal(a, b), place
            else:
                assert a.numel() == 0, place
