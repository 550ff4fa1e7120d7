"""Every operator against its definition in float64 on the CPU, over the same samples as the CPU's own tests."""

from typing import Any

import pytest
import torch
from torch import Tensor

from operators import test_batch_norm_act, test_depthwise_conv_bn_act, test_mbconv_core, test_squeeze_excite
from operators.axes import LAYOUTS, geometry
from operators.cases import CASES, Shape
from operators.parity import check_parity, evaluate, weighted_sum
from operators.sampling import Row, label

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SAMPLES: dict[str, list[Row]] = {
    "batch_norm_act": test_batch_norm_act.SAMPLE,
    "depthwise_conv_bn_act": [geometry(row) for row in test_depthwise_conv_bn_act.SAMPLE],
    "squeeze_excite": test_squeeze_excite.SAMPLE,
    "mbconv_core": [geometry(row) for row in test_mbconv_core.SAMPLE],
}
ROWS = [(operator, row) for operator, rows in SAMPLES.items() for row in rows]

WIDE = ((70_000, 1, 4, 4), (2, 70_000, 4, 4), (1, 16, 70_000, 3), (1, 16, 3, 70_000))
"""Each axis beyond the 65,535 blocks that a grid may have in its second and third dimension."""


@pytest.mark.parametrize(("operator", "row"), ROWS, ids=label)
def test_gradients(operator: str, row: Row, device: torch.device) -> None:
    check_parity(CASES[operator](**row), device=device)


@pytest.mark.parametrize(("operator", "row"), ROWS[::2], ids=label)
def test_without_gradient(operator: str, row: Row, device: torch.device) -> None:
    check_parity(CASES[operator](**row), gradient=False, device=device)


def mode(operator: str, training: bool) -> dict[str, Any]:
    """The options of ``operator`` that take statistics from the batch, or leave them."""
    name = "training" if training else "frozen"
    by_operator: dict[str, dict[str, Any]] = {"mbconv_core": {"bn1": name, "bn2": name}, "squeeze_excite": {}}
    return by_operator.get(operator, {"training": training})


def one_sided(out: Tensor) -> Tensor:
    """Gradients about 1, so that sums of 10^5 of them are not what rounding leaves."""
    return weighted_sum(out) + out.sum()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", WIDE, ids=label)
@pytest.mark.parametrize("operator", CASES)
def test_long_axes(operator: str, shape: Shape, layout: str, device: torch.device) -> None:
    """The results of training, and gradients with frozen statistics; few of their many terms cancel.

    The definition too is evaluated on the device, where so many channels take no time.
    """
    for training in (True, False):
        case = CASES[operator](shape, layout=layout, **mode(operator, training))
        check_parity(case.on(device), gradient=not training, loss=one_sided)


@pytest.mark.parametrize("training", [True, False], ids=("training", "frozen"))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", CASES)
def test_empty_batch(operator: str, layout: str, training: bool, device: torch.device) -> None:
    """Nothing to launch: an empty output, gradients of zero, and running statistics as they were."""
    case = CASES[operator]((0, 8, 9, 7), layout=layout, **mode(operator, training)).on(device)
    result = evaluate(case.call, case.tensors)
    assert result.out.shape[:2] == (0, 8) and result.out.device == device
    for name, g in result.gradients.items():
        assert torch.equal(g, torch.zeros_like(case.tensors[name])), f"gradient of {name}"
    for name, t in result.statistics.items():
        assert torch.equal(t, case.tensors[name]), name
    assert evaluate(case.call, case.tensors, gradient=False).out.shape == result.out.shape
