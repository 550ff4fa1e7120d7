"""The classes that fused modules are given, in place of their own.

A fused class is a subclass of the original one with another forward, so that fusing a module is setting its class: its
parameters, buffers, children, hooks and attributes stay as they are. The forward reads the modules it stands for at
every call, and what it does not know there it calls.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from effnet.fusion.chain import CONTAINERS, Step, cut, run
from effnet.fusion.inference import run_prepared
from effnet.fusion.parts import DROPS, EXCITATIONS, NORMS, global_hooks, why_called
from effnet.fusion.segments import Norm, Segment, is_plain
from effnet.prepared import ForgetsPrepared
from effnet.switch import fuses_others


class Fused(nn.Module):
    """What all fused classes share."""

    unfused_class: ClassVar[type[nn.Module]]

    def fused_layers(self) -> Iterable[Step | None]:
        """What the forward pass calls, one after the other."""
        raise NotImplementedError


def runs_fused(x: object) -> bool:
    """Whether a fused module runs its own forward on ``x``, or the original one."""
    if not fuses_others() or global_hooks():
        return False
    # The operators have no rules for the transforms of torch.func.
    return is_plain(x) and (torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None)


class FusedChain(Fused):
    """Children that are called one after the other."""

    def fused_layers(self) -> Iterable[Step | None]:
        return CONTAINERS[self.unfused_class](self)

    def forward(self, x: Any) -> Any:
        return run(cut(self.fused_layers()), x) if runs_fused(x) else super().forward(x)


class FusedLeaf(Fused):
    """One pattern within one module: a BatchNorm with its activation, or squeeze-and-excite."""

    def fused_layers(self) -> Iterable[Step | None]:
        return (self,)

    def forward(self, x: Any) -> Any:
        if runs_fused(x):
            segment = cut((self,))[0]
            if segment.serves(x):
                return segment.fused(x)
        return super().forward(x)


class Branch(NamedTuple):
    """A residual block: its layers, whether its input is added, and the drop-connect before that.

    ``drops`` says whether ``drop`` changes its argument now, and ``scales`` whether it does so by a factor per sample
    that depends on the argument's size and dtype alone.
    """

    layers: Iterable[Step | None]
    has_skip: bool
    drop: Callable[[Tensor], Tensor] | None = None
    drops: bool = False
    scales: bool = True

    @classmethod
    def of(cls, layers: Iterable[Step | None], has_skip: bool, drop: nn.Module | None = None) -> "Branch":
        """With a module for the drop-connect, which is called unless it is one that is known and passive."""
        if drop is None:
            return cls(layers, has_skip)
        known = type(drop) in DROPS and why_called(drop) is None
        return cls(layers, has_skip, drop, not known or DROPS[type(drop)](drop), known)

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        """The forward pass of ``block``, whose branch this is."""
        segments = cut(self.layers) or [Segment((), ())]
        inference = run_prepared(block, segments, x, has_skip=self.has_skip) if self.scales and not self.drops else None
        if inference is not None:
            return inference
        *segments, last = segments
        y = run(segments, x)
        if not self.has_skip:
            return last(y)
        if isinstance(last, Norm) and self.scales and x.shape == y.shape and x.dtype == y.dtype and last.serves(y):
            return last.fused(y, self._keep(y), x)
        y = last(y)
        if self.drop is not None and self.drops:
            y = self.drop(y)
        return y + x

    def _keep(self, y: Tensor) -> Tensor | None:
        """Drop-connect's factor per sample, drawn as the original draws it; None where nothing is dropped."""
        if self.drop is None or not self.drops:
            return None
        return self.drop(y.new_ones((y.shape[0], 1, 1, 1))).flatten()


class FusedBlock(ForgetsPrepared, Fused):
    """A residual block, whose last BatchNorm takes over drop-connect and the addition of the input."""

    def fused_branch(self: Any) -> Branch:
        raise NotImplementedError

    def fused_layers(self) -> Iterable[Step | None]:
        return self.fused_branch().layers

    def forward(self, x: Any) -> Any:
        return self.fused_branch().run(self, x) if runs_fused(x) else super().forward(x)


FUSED_CLASSES: dict[type[nn.Module], type[Fused]] = {}
"""By the original class."""

UNKNOWN_FORWARDS: dict[type[nn.Module], str] = {}
"""Classes of the installed libraries that no longer are what their fused class was written for, and why."""


def is_known(cls: type[nn.Module], visits: str) -> bool:
    """Whether the forward of ``cls`` visits the names ``visits``, in this order, as the one that was read does."""
    code = getattr(cls.forward, "__code__", None)
    known = code is not None and code.co_names == tuple(visits.split())
    if not known:
        UNKNOWN_FORWARDS[cls] = f"forward of {cls.__module__}.{cls.__qualname__} is not the one that is known"
    return known


def register(fused: type[Fused], visits: str) -> None:
    """Give modules of the class ``fused.unfused_class`` the class ``fused``, where the installed forward is known."""
    tables: list[dict[type[nn.Module], Any]] = [CONTAINERS, EXCITATIONS, NORMS]
    tables = [table for table in tables if fused.unfused_class in table]
    if is_known(fused.unfused_class, visits):
        FUSED_CLASSES[fused.unfused_class] = fused
        for table in tables:
            table[fused] = table[fused.unfused_class]
    else:
        for table in tables:
            del table[fused.unfused_class]


class FusedSequential(FusedChain, nn.Sequential):
    """``nn.Sequential`` with runs of its children fused."""

    unfused_class = nn.Sequential


register(FusedSequential, "")
