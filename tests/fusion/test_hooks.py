"""Hooks on any module of a fused model are called as they were, with the same tensors."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models._efficientnet_blocks import InvertedResidual, SqueezeExcite
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

import effnet
from fusion.networks import check_same, drawn, images, run
from tolerances import TOLERANCES, assert_close

INNER = ("conv_pw", "bn1", "bn1.act", "conv_dw", "bn2", "bn2.act", "se", "se.conv_reduce", "se.gate", "conv_pwl", "bn3")


def block() -> nn.Module:
    torch.manual_seed(0)
    made = InvertedResidual(8, 8, exp_ratio=2.0, act_layer=nn.SiLU, se_layer=SqueezeExcite, drop_path_rate=0.4)
    return drawn(made)


def check_hook(name: str, register: Callable[[nn.Module, list[Any]], Any], *, early: bool) -> None:
    """A hook on the module ``name`` sees, and may change, what it does in an unfused block."""
    fused, peer = block(), block()
    seen: dict[str, list[Any]] = {"fused": [], "peer": []}
    if not early:
        effnet.fuse(fused)
    register(fused.get_submodule(name), seen["fused"])
    register(peer.get_submodule(name), seen["peer"])
    if early:
        effnet.fuse(fused)
    x = images(3, 8, 6, 7)
    actual, expected = run(fused, x), run(peer, x)
    check_same(actual, expected)
    assert len(seen["fused"]) == len(seen["peer"]) == 1
    assert_close(seen["fused"][0], seen["peer"][0], 10 * TOLERANCES[torch.float64].gradient, name)


@pytest.mark.parametrize("early", [True, False], ids=("before", "after"))
@pytest.mark.parametrize("name", [*INNER, "drop_path", "aa", ""])
def test_forward_hooks(name: str, early: bool) -> None:
    def register(module: nn.Module, seen: list[Any]) -> None:
        def hook(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
            seen.append(out.detach())
            return out * 1.5

        module.register_forward_hook(hook)

    check_hook(name, register, early=early)


@pytest.mark.parametrize("name", [*INNER, "drop_path", ""])
def test_forward_pre_hooks(name: str) -> None:
    def register(module: nn.Module, seen: list[Any]) -> None:
        def hook(_module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            seen.append(inputs[0].detach())
            return inputs[0] * 0.5

        module.register_forward_pre_hook(hook)

    check_hook(name, register, early=False)


@pytest.mark.parametrize("name", ["conv_dw", "se", "conv_pwl", ""])
def test_backward_hooks(name: str) -> None:
    def register(module: nn.Module, seen: list[Any]) -> None:
        def hook(_module: nn.Module, inputs: tuple[Tensor], _outputs: tuple[Tensor]) -> tuple[Tensor]:
            seen.append(inputs[0])
            return (inputs[0] * 0.5,)

        module.register_full_backward_hook(hook)

    check_hook(name, register, early=False)


def test_removing_a_hook_fuses_again() -> None:
    fused = block()
    handle = fused.get_submodule("conv_dw").register_forward_hook(lambda *_: None)
    assert effnet.fuse(fused).counts() == {"batch_norm_act": 3, "squeeze_excite": 1}
    handle.remove()
    assert effnet.fuse(fused).counts() == {"mbconv": 1, "batch_norm_act": 1}


@pytest.mark.parametrize("register", [register_module_forward_hook, register_module_forward_pre_hook])
def test_global_hooks(register: Callable[[Callable[..., None]], Any]) -> None:
    """A hook on all modules' calls finds every module called."""
    fused, peer = block(), block()
    effnet.fuse(fused)
    called: list[nn.Module] = []
    handle = register(lambda module, *_: called.append(module))
    try:
        run(fused, images(2, 8, 6, 7))
        of_fused, called[:] = [name_of(fused, m) for m in called], []
        run(peer, images(2, 8, 6, 7))
    finally:
        handle.remove()
    assert of_fused == [name_of(peer, m) for m in called] != []


def name_of(model: nn.Module, module: nn.Module) -> str:
    return next(name for name, m in model.named_modules() if m is module)


def test_hooks_on_torchvision_containers() -> None:
    """A hook on a container within a block finds the container called; what is in it is fused still."""
    from torchvision.models.mobilenetv2 import InvertedResidual as Block

    torch.manual_seed(0)
    peer = drawn(Block(8, 8, 1, 2))
    fused = copy.deepcopy(peer)
    effnet.fuse(fused)
    seen: list[Tensor] = []
    for model in (fused, peer):
        model.conv[0].register_forward_hook(lambda module, inputs, out: seen.append(out.detach()))
        model.conv.register_forward_hook(lambda module, inputs, out: out * 2)
    x = images(2, 8, 5, 5)
    check_same(run(fused, x), run(peer, x))
    assert_close(seen[0], seen[1], TOLERANCES[torch.float64].forward, "seen")


def test_what_follows_a_pattern_may_work_in_place() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    fused = drawn(nn.Sequential(*layers))
    peer = copy.deepcopy(fused)
    for model in (fused, peer):
        model[2].register_forward_hook(lambda module, inputs, out: None)
    assert effnet.fuse(fused).counts() == {"depthwise_conv_bn_act": 1}
    check_same(run(fused, images(2, 8, 5, 5)), run(peer, images(2, 8, 5, 5)))
