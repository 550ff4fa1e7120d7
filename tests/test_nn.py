"""The operators as modules: BatchNorm's bookkeeping against ``nn.BatchNorm2d`` itself, fused and unfused."""

import pytest
import torch
from torch import Tensor, nn

import effnet_kernels.nn as knn
from effnet_kernels.nn import BatchNormAct2d, DepthwiseConvBNAct2d, SqueezeExcite2d
from tolerances import TOLERANCES, assert_close

BOUNDS = TOLERANCES[torch.float32]
FUSED = pytest.mark.parametrize("fused", [True, False], ids=("fused", "unfused"))


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 0.5


def check_buffers(actual: nn.BatchNorm2d, expected: nn.BatchNorm2d) -> None:
    assert actual.state_dict().keys() == expected.state_dict().keys()
    for name, t in expected.state_dict().items():
        ours = actual.state_dict()[name]
        assert ours.dtype == (torch.int64 if name == "num_batches_tracked" else torch.float32)
        assert_close(ours, t, BOUNDS.forward, name)


@FUSED
@pytest.mark.parametrize("affine", [True, False], ids=("affine", "plain"))
@pytest.mark.parametrize("track", [True, False], ids=("tracking", "not_tracking"))
@pytest.mark.parametrize("momentum", [0.1, 0.01, None])
def test_batch_norm_settings(momentum: float | None, track: bool, affine: bool, fused: bool) -> None:
    """Three steps of training, then evaluation: outputs, gradients and buffers are BatchNorm's."""
    ours = nn.BatchNorm2d(8, momentum=momentum, affine=affine, track_running_stats=track)
    peer = nn.BatchNorm2d(8, momentum=momentum, affine=affine, track_running_stats=track).double()
    for step in range(5):
        training = step < 3
        ours.train(training), peer.train(training)
        x = images(2 + step, 8, 5, 6, seed=step).requires_grad_()
        wide = x.detach().double().requires_grad_()
        out, expected = knn.batch_norm_act(x, ours, "silu", fused=fused), nn.functional.silu(peer(wide))
        assert_close(out, expected, BOUNDS.forward, "out")
        weights = images(*x.shape, seed=9)
        out.backward(weights), expected.backward(weights.double())
        assert x.grad is not None and wide.grad is not None
        assert_close(x.grad, wide.grad, BOUNDS.gradient, "gradient of x")
        check_buffers(ours, peer)
    for (name, p), expected_p in zip(ours.named_parameters(), peer.parameters(), strict=True):
        assert p.grad is not None and expected_p.grad is not None
        assert_close(p.grad, expected_p.grad, BOUNDS.gradient, f"gradient of {name}")


@FUSED
def test_batches_are_counted_in_training_only(fused: bool) -> None:
    module = BatchNormAct2d(8, fused=fused)
    for _ in range(3):
        module(images(2, 8, 3, 3))
    assert int(module.num_batches_tracked) == 3
    with torch.no_grad():
        module(images(2, 8, 3, 3))
    assert int(module.num_batches_tracked) == 4
    module.eval()
    before = module.running_mean.clone()
    module(images(2, 8, 3, 3))
    assert int(module.num_batches_tracked) == 4 and torch.equal(module.running_mean, before)


def test_batch_norm_act_is_a_batch_norm() -> None:
    """State dicts go both ways, and code that looks for BatchNorm finds it."""
    peer = nn.BatchNorm2d(8, eps=1e-3, momentum=0.01)
    peer(images(4, 8, 5, 5))
    module = BatchNormAct2d(8, eps=1e-3, momentum=0.01, activation="relu")
    module.load_state_dict(peer.state_dict())
    assert isinstance(module, nn.BatchNorm2d)
    module.eval(), peer.eval()
    x = images(2, 8, 4, 4)
    assert_close(module(x), peer.double()(x.double()).relu(), BOUNDS.forward, "out")
    peer.load_state_dict(module.state_dict())


@FUSED
def test_keep_and_residual(fused: bool) -> None:
    module = BatchNormAct2d(8, activation="identity", fused=fused).eval()
    x, residual = images(3, 8, 4, 4), images(3, 8, 4, 4, seed=1)
    keep = torch.tensor([0.0, 1.25, 1.25])
    expected = nn.BatchNorm2d(8).eval()(x) * keep.view(3, 1, 1, 1) + residual
    assert_close(module(x, keep, residual), expected, BOUNDS.forward, "out")


@FUSED
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, None), (5, 2, (1, 2, 1, 2)), (3, 2, 1)])
def test_depthwise_module(kernel: int, stride: int, padding: int | tuple[int, ...] | None, fused: bool) -> None:
    torch.manual_seed(0)
    module = DepthwiseConvBNAct2d(8, kernel, stride, padding, activation="relu6", fused=fused)
    x = images(3, 8, 10, 12)
    top, bottom, left, right = padding if isinstance(padding, tuple) else (padding or kernel // 2,) * 4
    padded = nn.functional.pad(x.double(), (left, right, top, bottom))
    y = nn.functional.conv2d(padded, module.conv.weight.double(), stride=stride, groups=8)
    expected = nn.BatchNorm2d(8).double()
    assert_close(module(x), nn.functional.relu6(expected(y)), BOUNDS.forward, "out")
    check_buffers(module.bn, expected)


@FUSED
def test_squeeze_excite_module(fused: bool) -> None:
    torch.manual_seed(0)
    module = SqueezeExcite2d(8, 2, activation="relu", gate="hardsigmoid", fused=fused)
    x = images(3, 8, 5, 4)
    pooled = x.double().mean((2, 3), keepdim=True)
    layers = SqueezeExcite2d(8, 2).double()
    layers.load_state_dict(module.state_dict())
    scale = nn.functional.hardsigmoid(layers.expand(layers.reduce(pooled).relu()))
    assert_close(module(x), x.double() * scale, BOUNDS.forward, "out")


@pytest.mark.parametrize("se", [True, False], ids=("se", "no_se"))
@pytest.mark.parametrize("frozen", ["neither", "bn1", "bn2", "both"])
def test_switching_fused_changes_nothing_else(frozen: str, se: bool) -> None:
    """mbconv_core on the same modules, fused and not: outputs, gradients and buffers agree."""

    def run(fused: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        modules = nn.ModuleDict(
            {"bn1": nn.BatchNorm2d(8), "conv": nn.Conv2d(8, 8, 3, 2, groups=8, bias=False), "bn2": nn.BatchNorm2d(8)}
        )
        if se:
            modules["se"] = SqueezeExcite2d(8, 2)
        for name in ("bn1", "bn2"):
            modules[name].train(frozen not in (name, "both"))
        u = images(3, 8, 8, 8).requires_grad_()
        out = knn.mbconv_core(
            u,
            modules["conv"],
            modules["bn2"],
            bn1=modules["bn1"],
            se=modules["se"] if se else None,
            padding=(0, 1, 0, 1),
            activation="silu",
            fused=fused,
        )
        out.backward(images(*out.shape, seed=2))
        gradients = {f"gradient of {name}": p.grad for name, p in modules.named_parameters()}
        return {"out": out, "gradient of u": u.grad, **gradients, **dict(modules.named_buffers())}

    fused, unfused = run(True), run(False)
    assert fused.keys() == unfused.keys()
    for name, t in unfused.items():
        assert_close(fused[name], t, BOUNDS.gradient, name)


def test_one_value_per_channel_raises() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        BatchNormAct2d(8)(images(1, 8, 1, 1))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.BatchNorm2d(8)(images(1, 8, 1, 1))
