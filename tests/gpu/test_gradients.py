"""Gradients against finite differences on the device: tight in float64, with wide steps in float32."""

from typing import Any

import pytest
import torch
from torch import Tensor

from operators.axes import LAYOUTS
from operators.cases import CASES, DIFFERENTIABLE, RUNNING_STATISTICS
from operators.sampling import label

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("batch_norm_act", {"shape": (2, 3, 3, 4), "keep": True, "residual": True}),
    ("batch_norm_act", {"shape": (2, 3, 3, 4), "training": False}),
    ("depthwise_conv_bn_act", {"shape": (2, 3, 4, 5)}),
    ("depthwise_conv_bn_act", {"shape": (2, 3, 5, 6), "kernel": 5, "stride": 2, "padding": (1, 2, 2, 1)}),
    ("squeeze_excite", {"shape": (2, 3, 3, 4), "squeezed": 2}),
    ("mbconv_core", {"shape": (2, 3, 4, 5), "squeezed": 2}),
    ("mbconv_core", {"shape": (2, 3, 5, 6), "squeezed": 2, "stride": 2, "padding": (0, 1, 0, 1), "bn1": None}),
    ("mbconv_core", {"shape": (2, 3, 4, 5), "bn1": "frozen", "bn2": "frozen", "se": None}),
]

STEPS = {
    torch.float64: {"eps": 1e-6, "atol": 1e-7, "rtol": 1e-5},
    # Of values near 1 the difference over 2·10⁻² keeps four digits, and the third derivative costs as much.
    torch.float32: {"eps": 1e-2, "atol": 5e-3, "rtol": 1e-2},
}


@pytest.mark.filterwarnings("ignore:Input #.* requires gradient and is not a double")
@pytest.mark.parametrize("dtype", STEPS, ids=label)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("operator", "options"), OPTIONS, ids=label)
def test_finite_differences(
    operator: str, options: dict[str, Any], layout: str, dtype: torch.dtype, device: torch.device
) -> None:
    """Every differentiable input; twice, because the analytical gradient must not vary."""
    case = CASES[operator](**options, layout=layout, dtype=dtype).on(device)
    names = [name for name in DIFFERENTIABLE if name in case.tensors]

    def function(*inputs: Tensor) -> Tensor:
        statistics = {name: t.clone() for name, t in case.tensors.items() if name in RUNNING_STATISTICS}
        return case.call({**case.tensors, **statistics, **dict(zip(names, inputs, strict=True))})

    inputs = [case.tensors[name].detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(function, inputs, nondet_tol=0.0, **STEPS[dtype])
