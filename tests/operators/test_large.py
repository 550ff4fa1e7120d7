"""Parity on tensors that kernels cut into many pieces: of images, of rows, of pixels and of channels."""

import pytest
import torch

from operators.axes import LAYOUTS
from operators.cases import CASES, Shape
from operators.parity import check_parity
from operators.sampling import Row, label, pairwise

SHAPES = ((71, 144, 6, 5), (300, 9, 4, 3), (2, 40, 45, 43), (1, 70, 40, 41), (1, 3, 130, 121), (2, 5, 3, 1100))
"""Many images of few pixels, many pixels of one image, long rows, and more channels than a slice holds."""

ROWS = pairwise(
    {
        "shape": SHAPES,
        "layout": LAYOUTS,
        "dtype": (torch.float32, torch.bfloat16, torch.float16),
        "kernel": (3, 5),
        "stride": (1, 2),
    }
)


@pytest.mark.parametrize("row", ROWS, ids=label)
@pytest.mark.parametrize("operator", ["depthwise_conv_bn_act", "mbconv_core"])
def test_convolutions(operator: str, row: Row) -> None:
    check_parity(CASES[operator](**row))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=label)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=label)
@pytest.mark.parametrize("operator", ["batch_norm_act", "squeeze_excite"])
def test_pointwise(operator: str, shape: Shape, layout: str, dtype: torch.dtype) -> None:
    options = {"keep": True, "residual": True} if operator == "batch_norm_act" else {"squeezed": 12}
    check_parity(CASES[operator](shape, layout=layout, dtype=dtype, **options))


PAST_CACHES = ((3, 48, 85, 86), (2, 66, 90, 96))
"""Above a million elements, which are written past the caches where pixels, or planes, are of whole vectors."""


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", PAST_CACHES, ids=label)
@pytest.mark.parametrize("operator", ["batch_norm_act", "squeeze_excite", "depthwise_conv_bn_act", "mbconv_core"])
def test_tensors_written_past_the_caches(operator: str, shape: Shape, layout: str) -> None:
    check_parity(CASES[operator](shape, layout=layout, dtype=torch.float32))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=label)
def test_other_dtypes_written_past_the_caches(dtype: torch.dtype) -> None:
    check_parity(CASES["depthwise_conv_bn_act"](PAST_CACHES[0], layout="channels_last", dtype=dtype))


@pytest.mark.parametrize("shape", SHAPES, ids=label)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inference(layout: str, shape: Shape) -> None:
    """BatchNorm folded into the weights, and the pooling in the convolution's epilogue."""
    check_parity(CASES["mbconv_core"](shape, layout=layout, bn1="frozen", bn2="frozen"), gradient=False)
