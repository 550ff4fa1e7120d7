"""The modules with every setting of BatchNorm: as ``nn.BatchNorm2d`` has it, step by step, and unmoved by bad input."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from effnet_kernels.nn import BatchNormAct2d, DepthwiseConvBNAct2d, SqueezeExcite2d, mbconv_core
from tolerances import TOLERANCES, assert_close

BOUND = TOLERANCES[torch.float32].forward
CHANNELS = 6


def norm(momentum: float | None, track: bool, affine: bool, eps: float) -> nn.BatchNorm2d:
    bn = nn.BatchNorm2d(CHANNELS, eps, momentum, affine, track)
    if affine:
        nn.init.uniform_(bn.weight, 0.5, 1.5)
        nn.init.uniform_(bn.bias, -0.5, 0.5)
    return bn


def assert_same_buffers(actual: nn.Module, expected: nn.Module) -> None:
    buffers = dict(expected.named_buffers())
    assert dict(actual.named_buffers()).keys() == buffers.keys()
    for name, buffer in actual.named_buffers():
        assert_close(buffer, buffers[name], BOUND, name)


@given(
    momentum=st.sampled_from([None, 0.0, 0.1, 1.0]),
    track=st.booleans(),
    affine=st.booleans(),
    eps=st.sampled_from([1e-3, 0.1, 10.0]),
    steps=st.lists(st.booleans(), min_size=1, max_size=5),
    fused=st.booleans(),
)
def test_batch_norm_is_pytorchs(
    momentum: float | None, track: bool, affine: bool, eps: float, steps: list[bool], fused: bool
) -> None:
    """Outputs and buffers after any sequence of training and evaluation."""
    torch.manual_seed(0)
    expected = norm(momentum, track, affine, eps)
    actual = BatchNormAct2d(CHANNELS, eps, momentum, activation="silu", fused=fused)
    actual.__dict__.update(copy.deepcopy(expected.__dict__))
    for step, training in enumerate(steps):
        x = torch.randn(3, CHANNELS, 4, 5, generator=torch.Generator().manual_seed(step))
        actual.train(training)
        expected.train(training)
        assert_close(actual(x), nn.functional.silu(expected(x)), BOUND, "out")
        assert_same_buffers(actual, expected)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in module.state_dict().items()}


BAD_INPUTS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x[0],
    lambda x: x[:, :-1],
    lambda x: x.long(),
    lambda x: x.to("meta"),
    lambda x: x.to_sparse(),
    lambda x: x[:1, :, :1, :1],
    lambda x: x[..., :0],
]


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("change", range(len(BAD_INPUTS)))
def test_refused_input_leaves_no_trace(change: int, momentum: float | None) -> None:
    """Neither in the running statistics nor in ``num_batches_tracked``, which PyTorch counts before it looks."""
    bn1, bn2 = norm(momentum, True, True, 1e-3), norm(momentum, True, True, 1e-3)
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, groups=CHANNELS, bias=False)
    modules: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = [
        (block := BatchNormAct2d(CHANNELS, momentum=momentum), block),
        (depthwise := DepthwiseConvBNAct2d(CHANNELS, 3, momentum=momentum), depthwise),
        (
            nn.ModuleList([bn1, bn2, conv]),
            lambda x: mbconv_core(x, conv, bn2, bn1=bn1, padding=1, activation="silu", fused=True),
        ),
    ]
    for module, function in modules:
        before = snapshot(module)
        with pytest.raises((TypeError, ValueError), match=r"^(x|u|gamma\d?|w|training): "):
            function(BAD_INPUTS[change](torch.randn(2, CHANNELS, 4, 5)))
        assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())


@pytest.mark.parametrize("number", ["1", "2"])
@pytest.mark.parametrize("buffer", ["running_mean", "running_var"])
def test_expanded_running_statistics_are_refused(number: str, buffer: str) -> None:
    """They cannot be written one channel at a time; the other BatchNorm is not moved either."""
    norms = {"1": norm(0.1, True, True, 1e-3), "2": norm(0.1, True, True, 1e-3)}
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, groups=CHANNELS, bias=False)
    setattr(norms[number], buffer, torch.ones(1).expand(CHANNELS))
    before = snapshot(nn.ModuleDict(norms))
    x = torch.randn(2, CHANNELS, 4, 5)
    with pytest.raises(ValueError, match=rf"^{buffer.removeprefix('running_')}{number}: expected memory of its own"):
        mbconv_core(x, conv, norms["2"], bn1=norms["1"], padding=1, activation="silu", fused=True)
    assert all(torch.equal(t, before[name]) for name, t in nn.ModuleDict(norms).state_dict().items())


def test_squeeze_excite_names_its_input() -> None:
    with pytest.raises(ValueError, match=r"^w1: expected shape"):
        SqueezeExcite2d(4, 2)(torch.zeros(2, 5, 3, 3))
