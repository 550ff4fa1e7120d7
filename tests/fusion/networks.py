"""Networks with statistics that do not let rounding errors grow, and the comparison of one with its fused copy."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import effnet
from tolerances import TOLERANCES, assert_close

BOUNDS = TOLERANCES[torch.float64]
DEPTH = 10
"""Rounding errors grow over the blocks of a network; in other layouts of memory its own results differ as much."""
LEAST_GRADIENT = 1e-3
"""A gradient that is zero but for rounding (of a bias before a BatchNorm) is compared with the size of all of them."""

Read = Callable[[object], Tensor]


class ExactHardsigmoid(nn.Module):
    """The float64 gradient of PyTorch's holds a sixth rounded to float32."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 3).clamp(0, 6) / 6


def drawn(model: nn.Module) -> nn.Module:
    """``model`` in float64 with random affine parameters and statistics, small enough not to grow with depth."""
    model = model.double()
    generator = torch.Generator().manual_seed(0)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None and m.running_var is not None:
            m.running_mean.normal_(0, 0.1, generator=generator)
            m.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(m.weight, 0.3, 1.0, generator=generator)
            nn.init.normal_(m.bias, 0, 0.3, generator=generator)
    return model


def unfused_copy(model: nn.Module) -> nn.Module:
    """``model`` as it is, with gates whose gradient is exact."""
    peer = copy.deepcopy(model)
    for name, module in list(peer.named_modules()):
        if type(module) is nn.Hardsigmoid:
            parent, _, attribute = name.rpartition(".")
            setattr(peer.get_submodule(parent), attribute, ExactHardsigmoid())
    return peer


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logits(out: object) -> Tensor:
    assert isinstance(out, Tensor)
    return out


def run(model: nn.Module, x: Tensor, read: Read = logits) -> dict[str, Tensor]:
    """Output, gradients and buffers of a forward and a backward pass, with the same random numbers each time."""
    torch.manual_seed(3)
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = read(model(x))
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wanted = [x, *parameters.values()]
    gradients = torch.autograd.grad(out.sin().sum(), wanted, allow_unused=True)
    names = ["gradient of x", *(f"gradient of {name}" for name in parameters)]
    found = {name: gradient for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
    return {"out": out.detach(), **found, **{name: b.clone() for name, b in model.named_buffers()}}


def check_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    size = max(float(t.norm()) for name, t in expected.items() if name.startswith("gradient"))
    for name, t in expected.items():
        if not name.startswith("gradient"):
            assert_close(actual[name], t, DEPTH * BOUNDS.forward, name)
        elif float(t.norm()) > LEAST_GRADIENT * size:
            assert_close(actual[name], t, DEPTH * BOUNDS.gradient, name)
        else:
            assert float((actual[name] - t).norm()) < DEPTH * BOUNDS.gradient * LEAST_GRADIENT * size, name


def check_fusing(model: nn.Module, x: Tensor, read: Read = logits) -> effnet.FusionReport:
    """Fuse ``model``; in training, then in evaluation, it computes what it computed. Nothing is left unsaid."""
    drawn(model)
    keys = list(model.state_dict())
    parameters = [id(p) for p in model.parameters()]
    names = [name for name, _ in model.named_modules()]
    candidates = expected_to_fuse(model)
    peer = unfused_copy(model)
    report = effnet.fuse(model)
    assert list(model.state_dict()) == keys
    assert [id(p) for p in model.parameters()] == parameters
    assert [name for name, _ in model.named_modules()] == names
    said = {name for pattern in report.fused for name in pattern.modules} | {left.name for left in report.left}
    within = {name.rpartition(".")[0] for name in candidates} & said
    assert {name for name in candidates - said if name.rpartition(".")[0] not in within} == set()
    for training in (True, False):
        model.train(training), peer.train(training)
        check_same(run(model, x, read), run(peer, x, read))
    return report


def expected_to_fuse(model: nn.Module) -> set[str]:
    """The depthwise convolutions, BatchNorms and squeeze-and-excite modules of ``model``."""
    return {name for name, m in model.named_modules() if _is_expected(m)}


def _is_expected(m: nn.Module) -> bool:
    depthwise = isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1
    excites = type(m).__name__ in ("SqueezeExcite", "SEModule", "SqueezeExcitation")
    return depthwise or excites or isinstance(m, nn.BatchNorm2d)
