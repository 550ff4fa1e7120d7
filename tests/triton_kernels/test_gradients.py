"""Gradients against finite differences, on tensors small enough for the interpreter."""

from typing import Any

import pytest
import torch

from gpu.test_gradients import test_finite_differences as check_finite_differences
from operators.sampling import label

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("batch_norm_act", {"shape": (2, 2, 2, 3), "keep": True, "residual": True}),
    ("depthwise_conv_bn_act", {"shape": (2, 1, 3, 4), "stride": 2, "padding": (0, 1, 0, 1)}),
    ("squeeze_excite", {"shape": (2, 3, 2, 2), "squeezed": 2}),
    ("mbconv_core", {"shape": (2, 1, 3, 4), "squeezed": 1}),
]


@pytest.mark.filterwarnings("ignore:Input #.* requires gradient and is not a double")
@pytest.mark.parametrize(("operator", "options"), OPTIONS, ids=label)
def test_finite_differences(operator: str, options: dict[str, Any], device: torch.device) -> None:
    check_finite_differences(operator, options, "channels_last", torch.float32, device)
