"""timm's implementation of a case, with the same weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from effnet import export_weights
from effnet.bench.problem import OperatorModule, Problem
from effnet.doctor.workload import BlockShape
from effnet.model import EfficientNet
from effnet.weights.names import LAYOUTS, tensor_names


class Rival(NamedTuple):
    """Another library's module, and what its parameters and buffers are called here."""

    module: nn.Module
    own_name: Callable[[str], str]


def timm_missing(problem: Problem) -> str | None:
    """Why timm does not compute ``problem``, or None where it does."""
    try:
        import timm
    except ImportError:
        return "timm is not installed: pip install 'effnet-kernels[bench]'"
    network = problem.network
    if network is not None and not timm.is_model(network.name):
        return f"timm has no {network.name}"
    return None


def timm_rival(problem: Problem) -> Rival:
    """timm's module in the mode and on the device of ``problem``."""
    if isinstance(problem.module, OperatorModule):
        rival = _operator(problem.module)
    else:
        assert problem.network is not None
        rival = _network(problem, problem.network)
    rival.module.to(problem.device).train(problem.case.training)
    return rival


def _network(problem: Problem, own: EfficientNet) -> Rival:
    import timm

    theirs = timm.create_model(own.name, pretrained=False, drop_rate=0.0, drop_path_rate=0.0)
    theirs.load_state_dict(export_weights(own, "timm"))
    ours = next(m for m in own.modules() if isinstance(m, nn.BatchNorm2d))
    for norm in theirs.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps, norm.momentum = ours.eps, ours.momentum
    names = {their: our for our, their in tensor_names(own, LAYOUTS["timm"]).items()}
    if problem.case.place is None:
        return Rival(theirs, names.__getitem__)
    stage, index = problem.case.place
    block, own_prefix = f"blocks.{stage}.{index}", f"stages.{stage}.{index}."
    return Rival(theirs.get_submodule(block), lambda name: names[f"{block}.{name}"].removeprefix(own_prefix))


class _Chain(nn.Module):
    """timm's layers one after the other, and the residual that is added last."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x if residual is None else x + residual


_BATCH_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "var"}
_SQUEEZE_EXCITE = {"conv_reduce.weight": "w1", "conv_reduce.bias": "b1"} | {
    "conv_expand.weight": "w2",
    "conv_expand.bias": "b2",
}
_SUFFIXES = {"bn": "", "bn1": "1", "bn2": "2"}


def _operator(own: OperatorModule) -> Rival:
    theirs = _Chain(**_layers(own.name, own.shape))
    names = {name: _own_name(name) for name in theirs.state_dict() if not name.endswith("num_batches_tracked")}
    tensors = dict(own.named_parameters()) | dict(own.named_buffers())
    with torch.no_grad():
        for their_name, their in theirs.state_dict().items():
            if their_name in names:
                their.copy_(tensors[names[their_name]].reshape(their.shape))
    return Rival(theirs, names.__getitem__)


def _own_name(name: str) -> str:
    layer, _, tensor = name.partition(".")
    if layer in _SUFFIXES:
        return _BATCH_NORM[tensor] + _SUFFIXES[layer]
    return _SQUEEZE_EXCITE[tensor] if layer == "se" else "w"


def _layers(name: str, shape: BlockShape) -> dict[str, nn.Module]:
    from timm.layers import BatchNormAct2d, create_conv2d
    from timm.models._efficientnet_blocks import SqueezeExcite

    channels = shape.channels

    def batch_norm() -> Any:
        return BatchNormAct2d(channels, act_layer=nn.SiLU)

    def convolution() -> Any:
        return create_conv2d(channels, channels, shape.kernel, stride=shape.stride, depthwise=True)

    def squeeze_excite() -> Any:
        return SqueezeExcite(channels, rd_channels=shape.squeezed, act_layer=nn.SiLU)

    if name == "batch_norm_act":
        return {"bn": batch_norm()}
    if name == "depthwise_conv_bn_act":
        return {"conv": convolution(), "bn": batch_norm()}
    if name == "squeeze_excite":
        return {"se": squeeze_excite()}
    first = {"bn1": batch_norm()} if shape.expansion > 1 else {}
    return {**first, "conv": convolution(), "bn2": batch_norm(), "se": squeeze_excite()}
