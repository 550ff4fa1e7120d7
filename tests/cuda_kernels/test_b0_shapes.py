"""``mbconv_core`` on every depthwise convolution of EfficientNet-B0 at 224×224, at a small batch."""

import pytest
import torch

from effnet_kernels.arguments import same_padding, symmetric_padding
from gpu.test_b0_shapes import DepthwiseShape, depthwise_shapes
from operators.axes import LAYOUTS
from operators.cases import mbconv_core_case
from operators.parity import check_parity
from operators.sampling import label

LARGE = 56


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=label)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", depthwise_shapes(), ids=label)
def test_block(shape: DepthwiseShape, layout: str, dtype: torch.dtype) -> None:
    """Training; one image where it is large, and TensorFlow's padding where the other dtype has PyTorch's."""
    channels, side, kernel, stride, squeezed, expanded = shape
    tensorflow = stride == 2 and (layout == "nchw") == (dtype == torch.float32)
    case = mbconv_core_case(
        (1 if side >= LARGE else 2, channels, side, side),
        kernel=kernel,
        stride=stride,
        padding=same_padding(side, side, kernel, stride) if tensorflow else symmetric_padding(kernel),
        squeezed=squeezed,
        dtype=dtype,
        layout=layout,
        bn1="training" if expanded else None,
    )
    check_parity(case)
