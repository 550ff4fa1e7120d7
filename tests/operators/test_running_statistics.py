"""Running statistics: what ``nn.BatchNorm2d`` would hold after the same steps."""

import pytest
import torch
from torch import nn

import effnet_kernels as ek
from effnet_kernels.reference.depthwise_conv_bn_act import depthwise_conv
from operators.axes import LAYOUTS
from operators.cases import CASES, Values
from operators.sampling import label
from tolerances import TOLERANCES, assert_close

STATISTICS_BOUND = TOLERANCES[torch.float32].forward


@pytest.mark.parametrize("momentum", [0.1, 0.01, 1.0, 0.0])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=label)
def test_batch_norm_act_follows_batch_norm(dtype: torch.dtype, layout: str, momentum: float) -> None:
    values = Values(3, torch.float32)
    peer = nn.BatchNorm2d(17, momentum=momentum).double()
    mean, var = torch.zeros(17), torch.ones(17)
    for batch in (2, 3, 5, 2):
        x = values.activations((batch, 17, 6, 5), dtype, layout)
        ek.batch_norm_act(x, None, None, mean, var, momentum=momentum)
        peer(x.double())
    assert_close(mean, peer.running_mean, STATISTICS_BOUND, "mean")
    assert_close(var, peer.running_var, STATISTICS_BOUND, "var")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cores_follow_batch_norm(layout: str) -> None:
    """Both BatchNorms of ``mbconv_core``, and the one after a depthwise convolution, over several steps."""
    values = Values(4, torch.float32)
    w = values.normal(8, 1, 3, 3, scale=1 / 3)
    first, second, alone = (nn.BatchNorm2d(8).double() for _ in range(3))
    statistics = {name: (torch.zeros(8), torch.ones(8)) for name in ("first", "second", "alone")}
    for batch in (2, 3, 2):
        x = values.activations((batch, 8, 7, 6), torch.float32, layout)
        bn1, bn2 = (ek.BatchNorm(None, None, *statistics[name]) for name in ("first", "second"))
        ek.mbconv_core(x, w, bn2, bn1=bn1, stride=2, padding=1)
        ek.depthwise_conv_bn_act(x, w, None, None, *statistics["alone"], stride=2, padding=1)
        a = nn.functional.silu(first(x.double()))
        second(depthwise_conv(a, w.double(), 2, (1, 1, 1, 1)))
        alone(depthwise_conv(x.double(), w.double(), 2, (1, 1, 1, 1)))
    for name, peer in (("first", first), ("second", second), ("alone", alone)):
        assert_close(statistics[name][0], peer.running_mean, STATISTICS_BOUND, f"mean of {name}")
        assert_close(statistics[name][1], peer.running_var, STATISTICS_BOUND, f"var of {name}")


@pytest.mark.parametrize("gradient", [True, False], ids=("gradient", "no_gradient"))
def test_training_updates_with_and_without_gradient(gradient: bool) -> None:
    case = CASES["batch_norm_act"](momentum=1.0)
    tensors = {name: t.clone() for name, t in case.tensors.items()}
    tensors["x"].requires_grad_(gradient)
    case.call(tensors)
    expected = tensors["x"].detach().double().var((0, 2, 3))
    assert_close(tensors["var"], expected, STATISTICS_BOUND, "var")


@pytest.mark.parametrize("operator", ["batch_norm_act", "depthwise_conv_bn_act"])
def test_evaluation_leaves_them(operator: str) -> None:
    case = CASES[operator](training=False)
    before = {name: case.tensors[name].clone() for name in ("mean", "var")}
    for requires_grad in (True, False):
        case.call({**case.tensors, "x": case.tensors["x"].detach().requires_grad_(requires_grad)})
    assert all(torch.equal(case.tensors[name], before[name]) for name in before)


def test_update_happens_once_per_forward() -> None:
    """Backward, and a second backward, recompute the normalisation but not the statistics."""
    case = CASES["mbconv_core"]()
    tensors = {name: t.clone() for name, t in case.tensors.items()}
    out = case.call({**tensors, "x": tensors["x"].requires_grad_()})
    after_forward = {name: tensors[name].clone() for name in ("mean1", "var1", "mean2", "var2")}
    out.sum().backward(retain_graph=True)
    out.sum().backward()
    assert all(torch.equal(tensors[name], after_forward[name]) for name in after_forward)
    assert not any(torch.equal(tensors[name], case.tensors[name]) for name in after_forward)


def test_half_statistics() -> None:
    """A model that is half throughout has half statistics; they are updated in their own dtype."""
    for dtype in (torch.bfloat16, torch.float16):
        case = CASES["batch_norm_act"](dtype=dtype, parameters="same")
        tensors = {name: t.clone() for name, t in case.tensors.items()}
        case.call(tensors)
        x = tensors["x"].double()
        expected = case.tensors["mean"].double() * 0.9 + x.mean((0, 2, 3)) * 0.1
        assert tensors["mean"].dtype == dtype
        assert_close(tensors["mean"], expected, TOLERANCES[dtype].forward, "mean")


def test_statistics_may_be_views() -> None:
    """Slices of one buffer, not contiguous on their own."""
    case = CASES["batch_norm_act"]((2, 8, 5, 7))
    both = torch.stack((case.tensors["mean"], case.tensors["var"]), dim=1)
    case.call(case.with_tensors(mean=both[:, 0], var=both[:, 1]).tensors)
    tensors = {name: t.clone() for name, t in case.tensors.items()}
    case.call(tensors)
    assert torch.equal(both[:, 0], tensors["mean"]) and torch.equal(both[:, 1], tensors["var"])
