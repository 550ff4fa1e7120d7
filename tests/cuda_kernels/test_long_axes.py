"""Tensors that are long along one axis: more of it than any block, slice or tile takes, and than 16 bits count."""

import pytest

from gpu.test_parity import mode, one_sided
from operators.axes import LAYOUTS
from operators.cases import CASES, Shape
from operators.parity import check_parity
from operators.sampling import label

LONG = ((1, 3, 3, 5000), (1, 3, 5000, 3), (1, 70_000, 2, 1), (1000, 1, 3, 2))
IMAGES = (70_000, 1, 1, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", LONG, ids=label)
@pytest.mark.parametrize("operator", CASES)
def test_long_axes(operator: str, shape: Shape, layout: str) -> None:
    """The results of training, and gradients with frozen statistics; few of their many terms cancel.

    A large eps, without which the difference of a channel's two values may be what rounding leaves.
    """
    options = {} if operator == "squeeze_excite" else {"eps": 0.3}
    for training in (True, False):
        case = CASES[operator](shape, layout=layout, **options, **mode(operator, training))
        check_parity(case, gradient=not training, loss=one_sided)


@pytest.mark.parametrize("operator", ["batch_norm_act", "depthwise_conv_bn_act"])
def test_many_images(operator: str) -> None:
    """More than a grid may have in its second and third dimension."""
    check_parity(CASES[operator](IMAGES, **mode(operator, False)), gradient=False)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_wide_rows(layout: str, kernel: int, stride: int) -> None:
    """Many tiles to a row, of every kernel and stride."""
    for shape in ((1, 9, 6, 330), (2, 3, 40, 131)):
        check_parity(CASES["depthwise_conv_bn_act"](shape, kernel=kernel, stride=stride, layout=layout))
