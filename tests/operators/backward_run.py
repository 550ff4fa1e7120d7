"""Gradients of every operator, with arguments left out and constants among them, and only some asked for.

Run as a program it saves them in the file that is named, and prints why Python calls the backward operators, or None
where C++ does. Run by ``test_backward_call.py``; the folder ``tests`` is on the path.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from effnet_kernels.backend import autograd_library_reason
from operators.axes import LAYOUTS
from operators.cases import CPU_CASES, DIFFERENTIABLE, EVERY_CASE, RUNNING_STATISTICS, Case
from operators.parity import weighted_sum

_NORMS: tuple[dict[str, Any], ...] = ({}, {"training": False}, {"affine": False}, {"statistics": False})
_OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "batch_norm_act": (*_NORMS, {"keep": True, "residual": True}, {"training": False, "residual": True}),
    "depthwise_conv_bn_act": (*_NORMS, {"stride": 2}),
    "squeeze_excite": ({}, {"weights": "convolution"}),
    "mbconv_core": (
        *({}, {"bn1": None}, {"se": None}, {"bn1": None, "se": None}, {"affine": False}),
        *({"bn1": "frozen"}, {"bn2": "frozen"}, {"bn1": "frozen", "bn2": "frozen"}),
    ),
    "pointwise_conv": ({}, {"out_channels": 1}),
    "mbconv": ({}, {"expanded": None}, {"se": None}, {"bn2": "frozen"}, {"out_channels": 1}),
}
_SHAPES = ((2, 8, 6, 7), (2, 1, 4, 4), (3, 8, 1, 1))


def gradients() -> dict[str, Tensor]:
    """Of every case, by a name that says which: with everything that has a gradient, and with one tensor alone."""
    found = {}
    for title, case in _cases():
        names = [name for name in case.tensors if name in DIFFERENTIABLE]
        for wanted in (names, *([name] for name in names)):
            of_wanted = _gradients_of(case, wanted)
            found |= {f"{title}: {name} of {len(wanted)}": of_wanted[name] for name in wanted}
    return found


def _cases() -> Iterator[tuple[str, Case]]:
    for operator, make in EVERY_CASE.items():
        for layout in ("channels_last",) if operator in CPU_CASES else LAYOUTS:
            for dtype in (torch.float32, torch.bfloat16):
                for options in _OPTIONS[operator]:
                    for shape in _SHAPES:
                        title = f"{operator} {layout} {dtype} {options} {shape}"
                        yield title, make(shape, layout=layout, dtype=dtype, **options)


def _gradients_of(case: Case, wanted: Sequence[str]) -> dict[str, Tensor]:
    tensors = {
        name: t.clone() if name in RUNNING_STATISTICS else t.detach().requires_grad_(name in wanted)
        for name, t in case.tensors.items()
    }
    loss = weighted_sum(case.call(tensors))
    return dict(zip(wanted, torch.autograd.grad(loss, [tensors[name] for name in wanted]), strict=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(gradients(), sys.argv[1])
    print(autograd_library_reason())
