"""Inference weights of a layer, prepared once and used until the layer changes.

On CPU, in evaluation and without gradients, a fused layer runs as one operator over weights with BatchNorm folded in
and packed for the kernel (``effnet_kernels.ops.prepared``). They live beside the layer and not in it: not in its state
dict, and neither pickled nor copied with it. They take as much memory again as the parameters.

They are prepared again when anything they were made from has changed: a parameter or buffer, in place or replaced, a
submodule, or a setting such as ``eps``. What PyTorch itself does not see, an edit through ``parameter.data``, takes
effect with the next ``train()``, ``eval()`` or ``to()`` of the layer or of what contains it. A layer with hooks runs as
its modules say.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from effnet_kernels.backend import backend_for
from effnet_kernels.ops.prepared import DTYPES
from effnet_kernels.watch import watch

Weights = TypeVar("Weights")
Self = TypeVar("Self", bound=nn.Module)

_GLOBAL_HOOKS = (nn_module._global_forward_hooks, nn_module._global_forward_pre_hooks)
_PLAIN_TENSORS = (Tensor, nn.Parameter)

_SETTINGS = ("training", "eps", "stride", "rule", "activation", "gate", "has_skip", "_fused")


def _settings_of(module: nn.Module) -> list[str]:
    """The names of what the weights, or the call of the operator, take from ``module`` itself."""
    return [name for name in _SETTINGS if name in module.__dict__]


class _Entry(Generic[Weights]):
    """Prepared weights by the activations' dtype, None where there can be none, and what they were made from."""

    def __init__(self, layer: nn.Module) -> None:
        modules = list(layer.modules())
        self.made_from = frozenset(map(id, modules))
        self.weights: dict[torch.dtype, Weights | None] = {}
        self.dtypes = {
            t.dtype for m in modules if isinstance(m, (nn.Conv2d, nn.Linear)) for t in m.parameters(recurse=False)
        }
        # num_batches_tracked too: the operator that moves the running statistics counts no change of theirs.
        owned = [(mapping, name) for m in modules for mapping in (m._parameters, m._buffers) for name in mapping]
        self.tensors = [t for mapping, name in owned if (t := mapping[name]) is not None]
        hooks: list[dict[Any, Any]] = [each for m in modules for each in (m._forward_hooks, m._forward_pre_hooks)]
        counts_changes = all(type(t) in _PLAIN_TENSORS and not t.is_inference() for t in self.tensors)
        own_forward = any("forward" in m.__dict__ for m in modules)
        on_cpu = all(t.device.type == "cpu" for t in self.tensors)
        self.can_prepare = counts_changes and on_cpu and not own_forward and not any(hooks)
        # Of the modules' dictionaries and not of the modules: the layer itself must not be kept alive.
        settings = [(m.__dict__, name) for m in modules for name in _settings_of(m)]
        children: list[dict[str, Any]] = [m._modules for m in modules if m._modules]
        inside = [(mapping, name) for mapping in children for name in mapping]
        self.watch = watch([*inside, *settings, *owned], [*children, *hooks], self.tensors if counts_changes else [])

    def is_current(self) -> bool:
        return self.watch.unchanged()

    def serves(self, x: Tensor) -> bool:
        if any(_GLOBAL_HOOKS):
            return False
        if torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in self.tensors)):
            return False
        return self.can_prepare and (self.dtypes == {x.dtype} or torch.is_autocast_enabled("cpu"))

    def weights_for(self, dtype: torch.dtype, prepare: Callable[[torch.dtype], Weights | None]) -> Weights | None:
        if dtype not in self.weights:
            with torch.inference_mode(False), torch.no_grad():
                self.weights[dtype] = prepare(dtype)
        return self.weights[dtype]


_entries: WeakKeyDictionary[nn.Module, _Entry[Any]] = WeakKeyDictionary()


def forget(layer: nn.Module) -> None:
    """Drop what was prepared for ``layer``, for the modules directly in it, and for what contains it."""
    containing = [module for module, entry in _entries.items() if id(layer) in entry.made_from]
    for module in (layer, *layer.children(), *containing):
        _entries.pop(module, None)


class ForgetsPrepared(nn.Module):
    """A module whose prepared weights end with ``train()``, ``eval()`` and every move."""

    def train(self: Self, mode: bool = True) -> Self:
        forget(self)
        return super().train(mode)

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        forget(self)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


def prepared(layer: nn.Module, x: Tensor, prepare: Callable[[torch.dtype], Weights | None]) -> Weights | None:
    """What ``prepare`` makes of ``layer``, in evaluation, or None where it does not serve ``x``.

    ``prepare`` is told the dtype of the activations: bfloat16, which has factors of its own, or float32 for all else.
    """
    if torch.compiler.is_compiling() or layer.training:
        return None
    if type(x) not in _PLAIN_TENSORS or x.device.type != "cpu" or x.dtype not in DTYPES or x.layout != torch.strided:
        return None
    if x.dim() != 4 or torch._C._get_tracing_state() is not None or backend_for(x.device) != "cpu":
        return None
    entry = _entries.get(layer)
    if entry is None or not entry.is_current():
        entry = _entries[layer] = _Entry(layer)
    if not entry.serves(x):
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return entry.weights_for(dtype if dtype == torch.bfloat16 else torch.float32, prepare)
