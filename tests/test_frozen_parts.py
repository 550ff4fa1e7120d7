"""Frozen BatchNorm and frozen parameters: the gradients that are left are the same, and no others are computed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import effnet_kernels as ek
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
    assert "mbconv_backward" not in {name for name, _ in recorder.calls}
    products = [arguments for name, arguments in recorder.calls if name == "pointwise_conv_backward"]
    # The head's, two and one in the MBConv blocks, and a Fused-MBConv block's projection.
    assert len(products) == 1 + 2 + 2 + 1 + 1
    assert {arguments[-2:] for arguments in products} == {(True, False)}
    assert x.grad is not None
    twin, leaf = quiet(fused=False), images(dtype=F64).requires_grad_()
    twin(leaf).square().sum().backward()
    assert leaf.grad is not None
    agree(x.grad, leaf.grad)
