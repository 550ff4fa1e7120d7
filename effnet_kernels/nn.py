"""The operators as modules, and as functions of modules: where BatchNorm's bookkeeping meets the operators.

Every module has ``fused``: True calls the fused operator, False its plain PyTorch definition. Parameters, buffers and
state dict are the same either way.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from effnet_kernels import ops, reference, synchronised
from effnet_kernels.activations import ACTIVATIONS, GATES
from effnet_kernels.arguments import BatchNorm, Padding, SqueezeExcite, symmetric_padding
from effnet_kernels.transforms import is_recomputing

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def tensor_of(module: nn.Module, name: str) -> Any:
    """``module.name``, found at once where it is a parameter or buffer like any other.

    ``nn.Module`` looks for it in Python, a microsecond for each of the hundreds that a step of a network asks for.
    """
    parameter = module._parameters.get(name)
    found = module._buffers.get(name) if parameter is None else parameter
    return getattr(module, name) if found is None else found


def batch_norm_arguments(bn: _BatchNorm) -> BatchNorm:
    """The tensors and settings of ``bn`` for one forward call, after which :func:`count_batch` has to be called.

    Momentum None gives the cumulative average, as in PyTorch, by a momentum that stays a tensor: its value would be
    waited for on a GPU, and is not there while torch.compile traces. Without running statistics the batch's are used
    in evaluation too. The second forward call of activation checkpointing counts no batch and moves no statistics.
    """
    momentum: float | Tensor = 0.0 if bn.momentum is None else bn.momentum
    mean = var = None
    if not bn.training or bn.track_running_stats:
        mean, var = tensor_of(bn, "running_mean"), tensor_of(bn, "running_var")
    if bn.training and is_recomputing():
        # Copies rather than none: autograd must save what it saved in the first call.
        mean, var = (None if t is None else t.clone() for t in (mean, var))
    elif bn.momentum is None and _counts(bn):
        momentum = (bn.num_batches_tracked.double() + 1).reciprocal()  # type: ignore[union-attr]
    training = bn.training or mean is None
    return BatchNorm(tensor_of(bn, "weight"), tensor_of(bn, "bias"), mean, var, training, momentum, bn.eps)


def _counts(bn: _BatchNorm) -> bool:
    return bn.training and bn.track_running_stats and tensor_of(bn, "num_batches_tracked") is not None


def count_batch(*norms: _BatchNorm | None) -> None:
    """One more in ``num_batches_tracked``, once the call has gone well: one that is refused leaves nothing behind."""
    if is_recomputing():
        return
    for bn in norms:
        if bn is not None and _counts(bn):
            tensor_of(bn, "num_batches_tracked").add_(1)


def uses_batch_statistics(bn: _BatchNorm) -> bool:
    """Whether ``bn`` normalises by the batch's own mean and variance."""
    return bn.training or tensor_of(bn, "running_mean") is None


def synchronising_group(bn: _BatchNorm) -> Any:
    """The processes whose batches ``bn`` now normalises together; None where it is this one alone."""
    if not bn.training or not isinstance(bn, (SyncBatchNorm2d, SyncBatchNormAct2d, nn.SyncBatchNorm)):
        return None
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = dist.group.WORLD if bn.process_group is None else bn.process_group
    return group if dist.get_world_size(group) > 1 else None


def has_hooks(*modules: nn.Module | None) -> bool:
    """Whether a call of one of ``modules`` runs hooks, which its weights in another operator would leave out.

    Hooks also make weights: those of ``torch.nn.utils.prune`` and of the older ``weight_norm``, before every call.
    """
    for m in modules:
        if m is not None and (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks):
            return True
    return False


class BatchNormAct2d(nn.BatchNorm2d):
    """act(BN(x)) · keep[n] (+ residual), with the parameters and buffers of ``nn.BatchNorm2d``."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        activation: str = "silu",
        fused: bool = True,
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.activation = activation
        self.fused = fused

    def forward(self, x: Tensor, keep: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        return batch_norm_act(x, self, self.activation, keep, residual, fused=self.fused)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over the batches of all processes together, in training, on every device.

    What ``nn.SyncBatchNorm`` is on GPUs, with the same state dict. Unlike it, it computes on CPU, in any layout, and is
    accepted there by ``DistributedDataParallel``. In evaluation, and where there is one process, it is BatchNorm.
    ``process_group`` is the group whose processes belong together, None all of them.
    """

    process_group: Any = None

    def forward(self, x: Tensor) -> Tensor:
        return batch_norm_act(x, self, "identity", fused=True)


class SyncBatchNormAct2d(BatchNormAct2d):
    """:class:`BatchNormAct2d` over the batches of all processes together, as :class:`SyncBatchNorm2d`."""

    process_group: Any = None


def sync_batchnorm(model: AnyModule, process_group: Any = None) -> AnyModule:
    """Let every BatchNorm in ``model`` take its statistics over the batches of all processes together.

    Processes may have batches of different sizes. Every ``nn.BatchNorm2d`` becomes a :class:`SyncBatchNorm2d`, and
    every :class:`BatchNormAct2d` a :class:`SyncBatchNormAct2d`, in place: parameters, buffers, hooks and the state
    dict's names stay. ``nn.SyncBatchNorm.convert_sync_batchnorm`` does the same for the networks of ``effnet``, but
    ``DistributedDataParallel`` refuses its modules on CPU.

    Args:
        model: the network, changed in place.
        process_group: of ``torch.distributed``; None for all processes.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is no module, or has a BatchNorm of another class.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    for name, module in norms.items():
        if type(module) not in _SYNCHRONISED and type(module) not in _SYNCHRONISED.values():
            expected = ", ".join(known.__name__ for known in _SYNCHRONISED)
            kind = type(module)
            got = f"{kind.__module__}.{kind.__name__} at {name!r}"
            raise TypeError(f"model: expected every BatchNorm to be one of {expected}, got {got}")
    for module in norms.values():
        module.__class__ = _SYNCHRONISED.get(type(module), type(module))
        module.process_group = process_group
    return model


_SYNCHRONISED: dict[type[_BatchNorm], type[_BatchNorm]] = {
    nn.BatchNorm2d: SyncBatchNorm2d,
    BatchNormAct2d: SyncBatchNormAct2d,
    nn.SyncBatchNorm: nn.SyncBatchNorm,
}


class DepthwiseConvBNAct2d(nn.Module):
    """act(BN(dwconv(x))): ``conv`` (an ``nn.Conv2d`` without bias) and ``bn``."""

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | Sequence[int] | None = None,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        activation: str = "silu",
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size, stride, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=eps, momentum=momentum)
        self.padding = symmetric_padding(kernel_size) if padding is None else padding
        self.activation = activation
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        return mbconv_core(x, self.conv, self.bn, padding=self.padding, activation=self.activation, fused=self.fused)


class SqueezeExcite2d(nn.Module):
    """x · gate(expand(act(reduce(mean(x))))): two biased 1×1 convolutions, ``reduce`` and ``expand``."""

    def __init__(
        self,
        channels: int,
        squeezed_channels: int,
        *,
        activation: str = "silu",
        gate: str = "sigmoid",
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed_channels, 1)
        self.expand = nn.Conv2d(squeezed_channels, channels, 1)
        self.activation = activation
        self.gate = gate
        self.fused = fused

    def arguments(self) -> SqueezeExcite:
        """The weights as the operators take them."""
        reduce, expand = self.reduce, self.expand
        return SqueezeExcite(*(tensor_of(layer, name) for layer in (reduce, expand) for name in ("weight", "bias")))

    def forward(self, x: Tensor) -> Tensor:
        if has_hooks(self.reduce, self.expand):
            hidden = ACTIVATIONS[self.activation](self.reduce(x.mean((2, 3), keepdim=True)))
            return x * GATES[self.gate](self.expand(hidden))
        if self.fused:
            return ops.squeeze_excite(x, *self.arguments(), activation=self.activation, gate=self.gate)
        return reference.squeeze_excite(x, self.arguments(), self.activation, self.gate)


def batch_norm_act(
    x: Tensor,
    bn: _BatchNorm,
    activation: str,
    keep: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    fused: bool,
) -> Tensor:
    """act(bn(x)) · keep[n] (+ residual)."""
    arguments = batch_norm_arguments(bn)
    group = synchronising_group(bn)
    if group is not None:
        x, arguments = synchronised.synchronised(x, arguments, group, fused=fused)
    if fused:
        out = ops.batch_norm_act(
            x,
            arguments.gamma,
            arguments.beta,
            arguments.mean,
            arguments.var,
            training=arguments.training,
            momentum=arguments.momentum,
            eps=arguments.eps,
            activation=activation,
            keep=keep,
            residual=residual,
        )
    else:
        out = reference.batch_norm_act(x, arguments, activation, keep, residual)
    count_batch(bn)
    return out


def mbconv_core(
    u: Tensor,
    conv: nn.Conv2d,
    bn2: _BatchNorm,
    *,
    bn1: _BatchNorm | None = None,
    se: SqueezeExcite2d | None = None,
    padding: int | Sequence[int],
    activation: str,
    fused: bool,
) -> Tensor:
    """se(act(bn2(conv(act(bn1(u)))))); ``padding`` replaces ``conv``'s own."""
    stride = conv.stride[0]
    bn1_arguments = None if bn1 is None else batch_norm_arguments(bn1)
    bn2_arguments = batch_norm_arguments(bn2)
    se_arguments = None if se is None else se.arguments()
    gate = "sigmoid" if se is None else se.gate
    group1, group2 = None if bn1 is None else synchronising_group(bn1), synchronising_group(bn2)
    if group1 is not None:
        assert bn1_arguments is not None
        u, bn1_arguments = synchronised.synchronised(u, bn1_arguments, group1, fused=fused)
    if group2 is not None:
        out = synchronised.mbconv_core(
            u,
            conv.weight,
            bn2_arguments,
            bn1_arguments,
            se_arguments,
            stride,
            padding,
            activation,
            gate,
            group=group2,
            fused=fused,
        )
    elif fused:
        out = ops.mbconv_core(
            u,
            conv.weight,
            bn2_arguments,
            bn1=bn1_arguments,
            se=se_arguments,
            stride=stride,
            padding=padding,
            activation=activation,
            gate=gate,
        )
    else:
        pads: Padding = (padding,) * 4 if isinstance(padding, int) else tuple(padding)  # type: ignore[assignment]
        out = reference.mbconv_core(
            u, conv.weight, bn2_arguments, bn1_arguments, se_arguments, stride, pads, activation, gate
        )
    count_batch(bn1, bn2)
    return out


def mbconv(
    x: Tensor,
    conv: nn.Conv2d,
    bn2: _BatchNorm,
    project: nn.Conv2d,
    *,
    expand: nn.Conv2d | None = None,
    bn1: _BatchNorm | None = None,
    se: SqueezeExcite2d | None = None,
    padding: int | Sequence[int],
    activation: str,
) -> Tensor:
    """project(mbconv_core(expand(x))); ``expand`` and ``project`` are 1×1 convolutions without bias. Always fused.

    It is three operators where statistics are those of several processes.
    """
    w_project = tensor_of(project, "weight")
    w_expand = None if expand is None else tensor_of(expand, "weight")
    if any(bn is not None and synchronising_group(bn) is not None for bn in (bn1, bn2)):
        u = x if w_expand is None else ops.pointwise_conv(x, w_expand)
        core = mbconv_core(u, conv, bn2, bn1=bn1, se=se, padding=padding, activation=activation, fused=True)
        return ops.pointwise_conv(core, w_project)
    out = ops.mbconv(
        x,
        tensor_of(conv, "weight"),
        w_project,
        batch_norm_arguments(bn2),
        w_expand=w_expand,
        bn1=None if bn1 is None else batch_norm_arguments(bn1),
        se=None if se is None else se.arguments(),
        stride=conv.stride[0],
        padding=padding,
        activation=activation,
        gate="sigmoid" if se is None else se.gate,
    )
    count_batch(bn1, bn2)
    return out


def mbconv_core_unscaled(
    u: Tensor,
    conv: nn.Conv2d,
    bn2: _BatchNorm,
    se: SqueezeExcite2d,
    *,
    bn1: _BatchNorm | None = None,
    padding: int | Sequence[int],
    activation: str,
) -> tuple[Tensor, Tensor]:
    """act(bn2(conv(act(bn1(u))))) and SE's scale of (N, C) beside it, in inference; always fused."""
    return ops.mbconv_core_unscaled(
        u,
        conv.weight,
        batch_norm_arguments(bn2),
        se.arguments(),
        bn1=None if bn1 is None else batch_norm_arguments(bn1),
        stride=conv.stride[0],
        padding=padding,
        activation=activation,
        gate=se.gate,
    )


__all__ = [
    "BatchNormAct2d",
    "DepthwiseConvBNAct2d",
    "SqueezeExcite2d",
    "SyncBatchNorm2d",
    "SyncBatchNormAct2d",
    "batch_norm_act",
    "mbconv",
    "mbconv_core",
    "mbconv_core_unscaled",
    "sync_batchnorm",
]
