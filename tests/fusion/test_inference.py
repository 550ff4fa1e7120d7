"""Fused MBConv blocks in inference on CPU: one operator over prepared weights, never those of another moment."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from efficientnet_pytorch.model import MBConvBlock
from efficientnet_pytorch.utils import BlockArgs, GlobalParams
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual, SqueezeExcite
from torch import Tensor, nn
from torchvision.models import efficientnet, mobilenetv2

import effnet
import effnet_kernels as ek
from fusion.networks import drawn, images
from operators.recording import Recorder
from tolerances import TOLERANCES, assert_close


@pytest.fixture(autouse=True)
def compiled_backend() -> None:
    if ek.backends()["cpu"] is not None:
        pytest.skip(f"no cpu backend: {ek.backends()['cpu']}")


def timm_block(**settings: Any) -> nn.Module:
    settings = {"act_layer": nn.SiLU, "se_layer": SqueezeExcite, "exp_ratio": 2.0} | settings
    return InvertedResidual(8, 8, drop_path_rate=0.2, **settings)


def torchvision_block() -> nn.Module:
    return efficientnet.MBConv(efficientnet.MBConvConfig(4, 5, 1, 8, 8, 1), 0.2, nn.BatchNorm2d)


def efficientnet_pytorch_block() -> nn.Module:
    arguments = BlockArgs(1, 3, 1, 2, 8, 8, 0.25, True)
    return MBConvBlock(arguments, GlobalParams(batch_norm_momentum=0.99, batch_norm_epsilon=1e-3))


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "timm": timm_block,
    "same_stride_2": lambda: timm_block(stride=2, dw_kernel_size=5, pad_type="same"),
    "no_expansion": lambda: DepthwiseSeparableConv(8, 8, act_layer=nn.ReLU6),
    "torchvision": torchvision_block,
    "mobilenet_v2": lambda: mobilenetv2.InvertedResidual(8, 8, 1, 2),
    "efficientnet_pytorch": efficientnet_pytorch_block,
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return drawn(BLOCKS[name]()).float().eval()


@torch.no_grad()
def check(block: nn.Module, x: Tensor, *, prepared: bool = True) -> None:
    """``block`` and its unfused copy agree on ``x``, and whether that took prepared weights is as said."""
    peer = copy.deepcopy(block)
    effnet.unfuse(peer)
    with Recorder() as recorder:
        out = block(x)
    assert ("mbconv_inference" in {name for name, _ in recorder.calls}) == prepared
    assert out.stride() == peer(x).stride()
    assert_close(out, peer.double()(x.double()), 2 * TOLERANCES[torch.float32].forward, "out")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=("nchw", "channels_last"))
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_one_operator(name: str, layout: torch.memory_format) -> None:
    """In the layout that came in."""
    block = made(name)
    effnet.fuse(block)
    check(block, images(2, 8, 9, 10).float().contiguous(memory_format=layout))


CHANGES: dict[str, Callable[[Any], object]] = {
    "parameter": lambda block: block.bn2.weight.mul_(2),
    "statistics": lambda block: block.bn3.running_mean.add_(1),
    "data": lambda block: (block.conv_dw.weight.data.mul_(2), block.eval()),
    "eps": lambda block: setattr(block.bn1, "eps", 0.5),
    "skip": lambda block: setattr(block, "has_skip", False),
    "activation": lambda block: [setattr(m, "act", nn.ReLU()) for m in (block.bn1, block.bn2)],
    "gate": lambda block: setattr(block.se, "gate", nn.Hardsigmoid()),
    "weights": lambda block: block.load_state_dict({k: v * 0.9 for k, v in block.state_dict().items()}),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_changes_take_effect(change: str) -> None:
    block, x = made("timm"), images(2, 8, 9, 10).float()
    effnet.fuse(block)
    check(block, x)
    before = block(x)
    CHANGES[change](block)
    # Squeeze-and-excite has another activation then.
    check(block, x, prepared=change != "activation")
    assert not torch.allclose(block(x), before)


def test_not_where_something_else_is_asked_for() -> None:
    block, x = made("timm"), images(2, 8, 9, 10).float()
    effnet.fuse(block)
    check(block.double(), x.double(), prepared=False)
    block.float()
    block.bn3.train()
    with torch.no_grad(), Recorder() as recorder:
        block(x)
    block.bn3.eval()
    with recorder:
        block(x)  # with gradients
    with torch.no_grad(), recorder:
        block.get_submodule("conv_dw").register_forward_hook(lambda *_: None)
        block(x)
    names = {name for name, _ in recorder.calls}
    assert "mbconv_inference" not in names and names != set()


def test_a_wrong_number_of_channels_is_refused() -> None:
    block = made("timm")
    effnet.fuse(block)
    with torch.no_grad(), pytest.raises((RuntimeError, ValueError), match=r"channels|shape"):
        block(images(2, 6, 9, 10).float())


def test_autocast() -> None:
    """As near as unfused, in the dtype that the shortcut gives."""
    block, x = made("timm"), images(2, 8, 9, 10).float()
    peer, exact = copy.deepcopy(block), copy.deepcopy(block).double()
    effnet.fuse(block)
    for dtype, prepared in ((torch.bfloat16, True), (torch.float32, False)):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Recorder() as recorder:
            out, unfused = block(x.to(dtype)), peer(x.to(dtype))
        assert ("mbconv_inference" in {name for name, _ in recorder.calls}) == prepared
        assert out.dtype == unfused.dtype
        with torch.no_grad():
            expected = exact(x.to(dtype).double())
        assert (out.double() - expected).norm() < 1.5 * (unfused.double() - expected).norm()
