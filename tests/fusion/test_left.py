"""What is left, each reason with a model made for it: it computes what it computed, and the report says why."""

from collections.abc import Callable
from typing import Any

import pytest
import timm.layers
import torch
import torchvision.ops
from timm.models._efficientnet_blocks import CondConvResidual, InvertedResidual, SqueezeExcite
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import effnet
from fusion.networks import check_same, drawn, images, run, unfused_copy


def chain(conv: nn.Module, *after: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv, *(after or (nn.BatchNorm2d(8), nn.ReLU())))


def depthwise(channels: int = 8, kernel: Any = 3, **settings: Any) -> nn.Conv2d:
    settings = {"padding": 1, "groups": 8, "bias": False} | settings
    return nn.Conv2d(8, channels, kernel, **settings)


class OtherConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class OtherNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class OtherResidual(InvertedResidual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class OtherForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = depthwise(), nn.BatchNorm2d(8), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)) + x)


def own_forward() -> nn.Module:
    conv = depthwise()
    conv.forward = lambda x: x * 3  # type: ignore[method-assign]
    return chain(conv)


def hooked(register: Callable[[nn.Module], Any]) -> nn.Module:
    model = chain(depthwise())
    register(model[0])
    return model


LEFT: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "subclass": (lambda: chain(OtherConv(8, 8, 3, groups=8, bias=False)), "0", "OtherConv is not a convolution"),
    "norm": (lambda: chain(depthwise(), OtherNorm(8)), "1", "OtherNorm is not a BatchNorm that is known"),
    "followed": (lambda: chain(depthwise(), nn.GroupNorm(2, 8)), "0", "followed by GroupNorm: GroupNorm is not"),
    "last": (lambda: chain(depthwise(), nn.Identity()), "0", "is not followed by a BatchNorm"),
    "dilation": (lambda: chain(depthwise(dilation=2, padding=2)), "0", "dilation (2, 2)"),
    "bias": (lambda: chain(depthwise(bias=True)), "0", "has a bias"),
    "multiplier": (lambda: chain(depthwise(16), nn.BatchNorm2d(16)), "0", "8 groups for 16 channels"),
    "kernel": (lambda: chain(depthwise(kernel=9, padding=4)), "0", "kernel 9×9"),
    "oblong": (lambda: chain(depthwise(kernel=(3, 5))), "0", "kernel 3×5"),
    "stride": (lambda: chain(depthwise(stride=3)), "0", "stride 3×3"),
    "strides": (lambda: chain(depthwise(stride=(1, 2))), "0", "stride 1×2"),
    "padding": (lambda: chain(depthwise(padding=4)), "0", "padding (4, 4, 4, 4)"),
    "padding_name": (lambda: chain(depthwise(padding="same")), "0", "padding 'same'"),
    "padding_mode": (lambda: chain(depthwise(padding_mode="reflect")), "0", "padding_mode 'reflect'"),
    "own_forward": (own_forward, "0", "has a forward of its own"),
    "hook": (lambda: hooked(lambda m: m.register_forward_hook(lambda *_: None)), "0", "has hooks"),
    "parametrised": (lambda: hooked(parametrizations.weight_norm), "0", "ParametrizedConv2d is not a convolution"),
    "pruned": (lambda: hooked(lambda m: prune.l1_unstructured(m, "weight", 0.3)), "0", "has hooks"),
    "forward": (OtherForward, "conv", "in OtherForward, whose forward is not known"),
    "sync": (lambda: chain(depthwise(), nn.SyncBatchNorm(8).eval()), "1", "SyncBatchNorm is not a BatchNorm"),
    "drop": (
        lambda: timm.layers.BatchNormAct2d(8, drop_layer=nn.Dropout),
        "",
        "Dropout before the activation",
    ),
    "activation": (lambda: timm.layers.BatchNormAct2d(8, act_layer=nn.GELU), "", "activation GELU"),
    "gate": (lambda: SqueezeExcite(8, gate_layer=nn.Tanh), "", "gate Tanh"),
    "se_activation": (lambda: SqueezeExcite(8, act_layer=nn.GELU), "", "activation GELU"),
    "se_maximum": (lambda: timm.layers.SEModule(8, add_maxpool=True), "", "pools the maximum too"),
    "se_norm": (lambda: timm.layers.SEModule(8, norm_layer=nn.BatchNorm2d), "", "BatchNorm2d between its layers"),
    "se_bias": (lambda: timm.layers.SEModule(8, bias=False), "", "layer without bias"),
    "block": (lambda: OtherResidual(8, 8), "", "OtherResidual, a subclass of InvertedResidual, is not known"),
    "conditional": (
        lambda: CondConvResidual(8, 8, num_experts=2),
        "",
        "CondConvResidual, a subclass of InvertedResidual",
    ),
    "script": (lambda: torch.jit.script(chain(depthwise())), "", "is compiled by TorchScript"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("case", LEFT)
def test_reasons(case: str) -> None:
    make, name, reason = LEFT[case]
    torch.manual_seed(0)
    model = drawn(make()).eval()
    x = images(2, 8, 9, 10)
    expected = run(model, x)
    report = effnet.fuse(model)
    reasons = {left.name: left.reason for left in report.left}
    assert reasons[name].startswith(reason)
    assert not any("depthwise" in p.operator or "mbconv" in p.operator or name in p.modules for p in report.fused)
    check_same(run(model, x), expected)


def test_anti_aliasing_ends_a_pattern() -> None:
    torch.manual_seed(0)
    block = drawn(InvertedResidual(8, 8, stride=2, aa_layer=timm.layers.BlurPool2d, se_layer=SqueezeExcite))
    expected = run(unfused_copy(block), images(2, 8, 8, 8))
    report = effnet.fuse(block)
    assert report.counts() == {"mbconv_core": 1, "squeeze_excite": 1, "batch_norm_act": 1}
    check_same(run(block, images(2, 8, 8, 8)), expected)


def test_drop_block_and_drop_path_of_another_kind_are_called() -> None:
    class Halve(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 2

    torch.manual_seed(0)
    block = drawn(InvertedResidual(8, 8))
    block.drop_path = Halve()
    block.bn2.drop = torchvision.ops.DropBlock2d(0.5, 3)
    expected = run(unfused_copy(block), images(2, 8, 8, 8))
    report = effnet.fuse(block)
    assert [left.name for left in report.left] == ["conv_dw", "bn2"]
    check_same(run(block, images(2, 8, 8, 8)), expected)


def test_a_library_that_has_changed_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block is known by the names that its forward visits; where these are others, it is another block."""
    from effnet.fusion import modules, timm_models

    monkeypatch.setattr(modules, "FUSED_CLASSES", dict(modules.FUSED_CLASSES))
    monkeypatch.setattr(modules, "UNKNOWN_FORWARDS", {})

    class FusedAnew(timm_models.FusedInvertedResidual):
        unfused_class = OtherResidual

    modules.register(FusedAnew, "conv_pw bn1 conv_dw bn2")
    assert OtherResidual not in modules.FUSED_CLASSES
    assert "OtherResidual is not the one that is known" in modules.UNKNOWN_FORWARDS[OtherResidual]


def test_a_library_that_does_not_load_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from effnet.fusion import rewrite

    monkeypatch.setitem(rewrite.LIBRARIES, "timm", "effnet.fusion.no_such_file")
    report = effnet.fuse(timm.layers.ConvNormAct(8, 8, act_layer=nn.GELU))
    assert report.left[0].name == "timm"
    assert report.left[0].reason.startswith("its version is not one that is known (No module named")


def test_a_traced_graph_is_left() -> None:
    model = torch.fx.symbolic_trace(drawn(chain(depthwise())))
    report = effnet.fuse(model)
    assert report.fused == ()
    assert {left.name for left in report.left} == {"0", "1"}


def test_networks_of_this_package_have_their_own_switch() -> None:
    model = nn.ModuleDict({"own": effnet.create_model("efficientnet_b0", num_classes=2), "chain": chain(depthwise())})
    report = effnet.fuse(model)
    assert [(left.name, left.reason) for left in report.left] == [("own", "has a switch of its own, model.fused")]
    assert report.counts() == {"depthwise_conv_bn_act": 1}


def test_str() -> None:
    model = nn.Sequential(chain(depthwise()), *(chain(depthwise(bias=True)) for _ in range(4)))
    text = str(effnet.fuse(model))
    assert text.splitlines() == [
        "batch_norm_act         4",
        "depthwise_conv_bn_act  1",
        "left                   4  has a bias: 1.0, 2.0, 3.0 and 1 more",
    ]
    assert str(effnet.fuse(nn.Linear(2, 2))) == "nothing to fuse"
