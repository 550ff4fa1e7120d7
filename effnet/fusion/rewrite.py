"""``fuse`` and ``unfuse``: setting the classes of a model's modules, and setting them back."""

from collections.abc import Iterator
from importlib import import_module
from typing import cast

import torch
from torch import nn

from effnet.fusion.chain import Step, cut, flatten
from effnet.fusion.modules import FUSED_CLASSES, UNKNOWN_FORWARDS, Fused
from effnet.fusion.parts import (
    EXCITATIONS,
    why_called,
    why_not_depthwise,
    why_not_excitation,
    why_not_norm,
)
from effnet.fusion.report import FusedPattern, FusionReport, LeftModule
from effnet.switch import Switchable

LIBRARIES = {
    "timm": "effnet.fusion.timm_models",
    "torchvision": "effnet.fusion.torchvision_models",
    "efficientnet_pytorch": "effnet.fusion.efficientnet_pytorch_models",
    "efficientnet_lite_pytorch": "effnet.fusion.efficientnet_lite_pytorch_models",
    "segmentation_models_pytorch": "effnet.fusion.segmentation_models",
}
"""The package that defines a module's class, and the file here that knows its modules."""


def fuse(model: nn.Module) -> FusionReport:
    """Let the modules of somebody else's model run with the fused operators, in place.

    Depthwise convolution + BatchNorm + activation, squeeze-and-excite, BatchNorm + activation, and whole MBConv blocks
    of timm, torchvision, ``efficientnet_pytorch``, ``efficientnet_lite_pytorch`` and ``segmentation_models_pytorch``,
    and the same patterns within any ``nn.Sequential``. The model computes what it computed: outputs, gradients, running
    statistics and random numbers, in training and in evaluation. Parameters, buffers, their names and the state dict
    are untouched; a module's class becomes a subclass of its own. What is not known to be equal is left, with the
    reason in the report: see docs/fusion.md.

    It runs fused unless ``effnet.fused`` was set to False (or ``effnet.use_fused(False)``), and then as before.

    Args:
        model: any module, in any mode, on any device; one that is fused already is fused where it was not.

    Returns:
        what is fused now, and what is left and why; ``print`` it.

    Raises:
        TypeError: ``model`` is not a module.
    """
    _check_module(model)
    broken = [LeftModule(library, reason) for library, reason in _load_libraries(model).items()]
    names = {id(module): name for name, module in model.named_modules()}
    covered: set[int] = set()
    followers: dict[int, Step | None] = {}
    patterns = []
    for module in _foreign(model):
        fused = _fused_class(module)
        if fused is None:
            continue
        module.__class__ = fused
        steps = flatten(fused.fused_layers(module))  # type: ignore[arg-type]
        for step, follower in zip(steps, [*steps[1:], None], strict=True):
            followers.setdefault(id(step), follower)
        segments = [segment for segment in cut(steps) if segment.operator is not None]
        for segment in segments:
            # What an outer module covers, the inner ones repeat.
            if not covered.issuperset(map(id, segment.modules)):
                inside = tuple(names[id(m)] for m in segment.modules if id(m) in names)
                patterns.append(FusedPattern(str(segment.operator), inside))
            covered.update(map(id, segment.modules))
        if not segments:
            module.__class__ = fused.unfused_class
    return FusionReport(tuple(patterns), (*broken, *_left(model, covered, followers)))


def unfuse(model: nn.Module) -> None:
    """Set the classes of all modules that :func:`fuse` changed back to their own.

    Raises:
        TypeError: ``model`` is not a module.
    """
    _check_module(model)
    for module in model.modules():
        if type(module) in FUSED_CLASSES.values():
            module.__class__ = cast(Fused, module).unfused_class


def _check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")


def _load_libraries(model: nn.Module) -> dict[str, str]:
    """Load what is known of the libraries that ``model`` has modules of; why not, of those that this fails for."""
    present = {type(module).__module__.partition(".")[0] for module in model.modules()}
    reasons = {}
    for library, known in LIBRARIES.items():
        if library in present:
            try:
                import_module(known)
            except (ImportError, AttributeError) as error:
                reasons[library] = f"its version is not one that is known ({error})"
    return reasons


def _foreign(model: nn.Module) -> Iterator[nn.Module]:
    """All modules but those that a class of their own runs: this package's, and TorchScript's."""
    seen: set[int] = set()

    def visit(module: nn.Module) -> Iterator[nn.Module]:
        if id(module) in seen or _runs_itself(module) is not None:
            return
        seen.add(id(module))
        yield module
        for child in module.children():
            yield from visit(child)

    return visit(model)


def _runs_itself(module: nn.Module) -> str | None:
    if isinstance(module, Switchable):
        return "has a switch of its own, model.fused"
    return "is compiled by TorchScript" if isinstance(module, torch.jit.ScriptModule) else None


def _fused_class(module: nn.Module) -> type[Fused] | None:
    if "forward" in module.__dict__:
        return None
    own = type(module)
    return cast(type[Fused], own) if own in FUSED_CLASSES.values() else FUSED_CLASSES.get(own)


def _left(model: nn.Module, covered: set[int], followers: dict[int, Step | None]) -> Iterator[LeftModule]:
    """What one would expect to be fused and is not, with the first reason that keeps it from that."""
    own: list[str] = []
    for name, module in model.named_modules():
        if id(module) in covered or any(name.startswith(prefix) for prefix in own):
            continue
        whole = _runs_itself(module)
        if whole is not None:
            own.append(f"{name}." if name else "")
        reason = whole or _why_left(module, followers)
        if reason is None:
            continue
        if reason is _BY_ITSELF:
            parent = model.get_submodule(name.rpartition(".")[0])
            if type(parent) in EXCITATIONS:
                continue  # Named for itself, with what is in it.
            reason = f"in {type(parent).__name__}, whose forward is not known"
        yield LeftModule(name, reason)


_BY_ITSELF = "by itself"


def _why_left(module: nn.Module, followers: dict[int, Step | None]) -> str | None:
    """Why ``module`` is not fused, _BY_ITSELF where that lies in what calls it; None for what is no candidate."""
    if type(module) in EXCITATIONS:
        excitation = EXCITATIONS[type(module)](module)
        return excitation if isinstance(excitation, str) else why_called(module) or why_not_excitation(excitation)
    if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
        return why_not_norm(module) or _BY_ITSELF
    if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
        return why_not_depthwise(module) or _why_not_followed(module, followers)
    if type(module) in UNKNOWN_FORWARDS:
        return UNKNOWN_FORWARDS[type(module)]
    if type(module) in FUSED_CLASSES:
        return why_called(module)
    known = [cls for cls in type(module).__mro__[1:] if cls in FUSED_CLASSES and cls is not nn.Sequential]
    if known and not isinstance(module, Fused):
        return f"{type(module).__name__}, a subclass of {known[0].__name__}, is not known"
    return None


def _why_not_followed(conv: nn.Module, followers: dict[int, Step | None]) -> str:
    if id(conv) not in followers:
        return _BY_ITSELF
    follower = followers[id(conv)]
    if not isinstance(follower, nn.Module):
        return "is not followed by a BatchNorm"
    return f"followed by {type(follower).__name__}: {why_not_norm(follower)}"
