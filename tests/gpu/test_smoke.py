"""A few small calls of every kernel, for tools under which everything is slow; ``sanitize`` runs these.

Memory is not poisoned here: a tool that looks for what was never written has to see that it was not.
"""

import pytest
import torch

from operators.axes import LAYOUTS
from operators.cases import (
    Case,
    batch_norm_act_case,
    depthwise_conv_bn_act_case,
    mbconv_core_case,
    squeeze_excite_case,
)
from operators.parity import check_parity
from operators.sampling import label

SHAPES = ((2, 17, 13, 9), (3, 40, 8, 8))
"""Channels and rows that no vector divides, and some that every vector does."""


def cases(operator: str, layout: str, dtype: torch.dtype) -> list[Case]:
    common = {"layout": layout, "dtype": dtype}
    geometries = [{"kernel": kernel, "stride": stride} for kernel in (3, 5, 7) for stride in (1, 2)]
    if operator == "batch_norm_act":
        options = [{"training": training} for training in (True, False)] + [{"keep": True, "residual": True}]
        return [batch_norm_act_case(shape, **common, **row) for shape in SHAPES for row in options]
    if operator == "squeeze_excite":
        return [squeeze_excite_case(shape, **common) for shape in SHAPES]
    if operator == "depthwise_conv_bn_act":
        return [depthwise_conv_bn_act_case(shape, **common, **row) for shape in SHAPES for row in geometries]
    parts = [{"bn1": bn1, "se": se} for bn1 in ("training", None) for se in ("matrix", None)]
    return [mbconv_core_case(shape, **common, **row) for shape in SHAPES for row in (*geometries, *parts)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=label)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", ["batch_norm_act", "depthwise_conv_bn_act", "squeeze_excite", "mbconv_core"])
def test_smoke(operator: str, layout: str, dtype: torch.dtype, device: torch.device) -> None:
    for case in cases(operator, layout, dtype):
        check_parity(case, device=device)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_smoke_of_inference(layout: str, device: torch.device) -> None:
    for shape in SHAPES:
        frozen = mbconv_core_case(shape, layout=layout, bn1="frozen", bn2="frozen")
        for case in (frozen, depthwise_conv_bn_act_case(shape, layout=layout, training=False)):
            check_parity(case, gradient=False, device=device)
