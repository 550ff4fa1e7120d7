"""Weights that are computed, and hooks inside a block: a fused network uses them as an unfused one does."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from networks import agree, images, small

F64 = torch.float64
CONVOLUTIONS = (
    "stem.conv",
    "stages.0.0.expand.conv",
    "stages.2.0.expand.conv",
    "stages.2.0.depthwise.conv",
    "stages.2.0.squeeze_excite.reduce",
    "stages.2.0.squeeze_excite.expand",
    "stages.2.0.project.conv",
    "head.conv",
)
WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "prune": lambda conv: prune.random_unstructured(conv, "weight", 0.5),
    "hook_weight_norm": nn.utils.weight_norm,
    "hook_spectral_norm": nn.utils.spectral_norm,
}


def train(fused: bool, way: Callable[[nn.Module], Any], name: str) -> list[Tensor]:
    """Logits, gradients and state of two steps, and logits in evaluation between and after them."""
    model = small(fused=fused, dtype=F64, dropout=0.0, drop_connect=0.0)
    with torch.no_grad():
        model.eval()(images(dtype=F64))
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        way(model.get_submodule(name))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    results = []
    for _ in range(2):
        optimizer.zero_grad()
        out = model.train()(images(dtype=F64))
        out.square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            results += [out.detach(), model.eval()(images(dtype=F64))]
    assert not torch.equal(results[1], results[3])
    return [*results, *(p.grad for p in model.parameters() if p.grad is not None), *model.state_dict().values()]


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("way", WAYS)
def test_computed_weights(way: str, name: str) -> None:
    for fused, unfused in zip(*(train(fused, WAYS[way], name) for fused in (True, False)), strict=True):
        agree(fused, unfused)


@pytest.mark.parametrize("training", [True, False], ids=("training", "evaluation"))
@pytest.mark.parametrize("gradients", [True, False], ids=("gradients", "no_grad"))
@pytest.mark.parametrize("batch", [1, 3])
def test_every_module_inside_a_block_calls_its_hooks(batch: int, gradients: bool, training: bool) -> None:
    """And what a hook returns takes the output's place."""
    x = images(batch, 64, dtype=F64)
    block = "stages.2.0"
    names = [f"{block}.{name}" for name, _ in small().get_submodule(block).named_modules() if name]
    assert len(names) == 12
    for name in names:
        outputs = []
        for fused in (True, False):
            model = small(fused=fused, dtype=F64, dropout=0.0, drop_connect=0.0).train(training)
            with torch.set_grad_enabled(gradients):
                plain = model(x)
                handle = model.get_submodule(name).register_forward_hook(lambda _module, _inputs, out: out.sin())
                outputs.append(model(x))
                handle.remove()
                if not training:
                    agree(model(x), plain)
        agree(*outputs)
        assert not torch.allclose(outputs[0], plain), name


def test_backward_hooks_are_called() -> None:
    names = [name for name, module in small().named_modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    called: list[str] = []
    results = []
    for hooked in (True, False):
        model = small(dtype=F64, dropout=0.0, drop_connect=0.0)
        for name in names if hooked else ():
            module = model.get_submodule(name)
            module.register_full_backward_hook(lambda _module, _to_inputs, _grads, name=name: called.append(name))
        model(images(dtype=F64).requires_grad_()).square().sum().backward()
        results.append([p.grad for p in model.parameters()])
    assert sorted(called) == sorted(names)
    for a, b in zip(*results, strict=True):
        agree(a, b)
