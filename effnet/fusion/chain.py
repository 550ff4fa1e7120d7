"""A chain of layers, each applied to the result of the one before, cut into as few segments as possible."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from effnet.fusion.parts import (
    ACTIVATIONS,
    EXCITATIONS,
    NORMS,
    Excitation,
    is_pointwise,
    why_called,
    why_not_activation,
    why_not_depthwise,
    why_not_excitation,
    why_not_norm,
)
from effnet.fusion.segments import Call, Core, Excite, MBConv, Norm, Segment

Step = nn.Module | Excitation


def in_sequence(layer: nn.Sequential) -> Iterable[nn.Module | None]:
    """The layers of ``layer`` in the order of its calls; ``children()`` would name one that is called twice once."""
    return layer._modules.values()


CONTAINERS: dict[type[nn.Module], Callable[[Any], Iterable[nn.Module | None]]] = {nn.Sequential: in_sequence}
"""Of a module that calls its children one after the other these children; None is passed over."""


def flatten(layers: Iterable[Step | None]) -> list[Step]:
    """``layers`` with the children of containers in their place, and without what does nothing."""
    steps: list[Step] = []
    for layer in layers:
        if layer is None:
            continue
        if isinstance(layer, Excitation) or why_called(layer) is not None:
            steps.append(layer)
        elif type(layer) in CONTAINERS:
            steps.extend(flatten(CONTAINERS[type(layer)](layer)))
        elif type(layer) in EXCITATIONS:
            excitation = EXCITATIONS[type(layer)](layer)
            steps.append(layer if isinstance(excitation, str) else excitation)
        elif type(layer) is not nn.Identity:
            steps.append(layer)
    return steps


def cut(layers: Iterable[Step | None]) -> list[Segment]:
    """The segments of a chain, longest first: MBConv, its core, then single patterns, then calls."""
    steps = flatten(layers)
    segments: list[Segment] = []
    i = 0
    while i < len(steps):
        segment, i = _mbconv_at(steps, i) or _core_at(steps, i) or _single_at(steps, i)
        segments.append(segment)
    return segments


def run(segments: Iterable[Segment], x: Tensor) -> Tensor:
    for segment in segments:
        x = segment(x)
    return x


def _single_at(steps: list[Step], i: int) -> tuple[Segment, int]:
    step = steps[i]
    found = _norm_at(steps, i) or _excite_at(steps, i)
    if found is not None:
        return found
    return (Segment((step.call,), ()) if isinstance(step, Excitation) else Call(step)), i + 1


def _norm_at(steps: list[Step], i: int) -> tuple[Norm, int] | None:
    """The BatchNorm at ``i`` with its activation, inside it or after it."""
    bn: Any = steps[i] if i < len(steps) else None
    if why_not_norm(bn) is not None:
        return None
    inside = NORMS[type(bn)](bn)
    if isinstance(inside, nn.Module) and type(inside) is not nn.Identity:
        return Norm(bn, ACTIVATIONS[type(inside)], (bn, inside), 1), i + 1
    after = steps[i + 1] if i + 1 < len(steps) else None
    if isinstance(after, nn.Module) and why_not_activation(after) is None:
        return Norm(bn, ACTIVATIONS[type(after)], (bn, after), 2), i + 2
    return Norm(bn, "identity", (bn,), 1), i + 1


def _excite_at(steps: list[Step], i: int) -> tuple[Excite, int] | None:
    se = steps[i] if i < len(steps) else None
    if not isinstance(se, Excitation) or why_not_excitation(se) is not None:
        return None
    return Excite(se, ACTIVATIONS[type(se.activation)]), i + 1


def _core_at(steps: list[Step], i: int) -> tuple[Core, int] | None:
    """[BatchNorm, activation], depthwise convolution, BatchNorm, activation, [SE], of one activation."""
    first = _norm_at(steps, i)
    norm1, j = (None, i) if first is None else first
    conv: Any = steps[j] if j < len(steps) else None
    if why_not_depthwise(conv) is not None:
        return None
    second = _norm_at(steps, j + 1)
    if second is None:
        return None
    norm2, end = second
    if norm1 is not None and norm1.activation != norm2.activation:
        return None
    excite, after = _excite_at(steps, end) or (None, end)
    if excite is not None and excite.activation != norm2.activation:
        excite, after = None, end
    return Core(conv, norm1, norm2, excite), after


def _mbconv_at(steps: list[Step], i: int) -> tuple[MBConv, int] | None:
    """A core between 1×1 convolutions, the first of which goes with the core's first BatchNorm."""
    first = steps[i]
    expand: Any = first if is_pointwise(first) else None
    found = _core_at(steps, i if expand is None else i + 1)
    if found is None:
        return None
    core, end = found
    project: Any = steps[end] if end < len(steps) else None
    if (core.norm1 is None) != (expand is None) or not is_pointwise(project):
        return None
    return MBConv(expand, core, project), end + 1
