"""``mbconv_core`` on every depthwise convolution of EfficientNet-B0 at 224×224, at a batch as in training."""

from typing import NamedTuple

import pytest
import torch

from effnet.config import find_variant
from effnet_kernels.arguments import output_size, same_padding, symmetric_padding
from operators.axes import LAYOUTS
from operators.cases import mbconv_core_case
from operators.parity import check_parity
from operators.sampling import label

BATCH = 32

pytestmark = pytest.mark.usefixtures("poisoned_memory")


class DepthwiseShape(NamedTuple):
    channels: int
    side: int
    kernel: int
    stride: int
    squeezed: int
    expanded: bool


def depthwise_shapes() -> list[DepthwiseShape]:
    """Each once, from the stem's 112×112 down."""
    side, found = 112, {}
    for stage in find_variant("efficientnet_b0").blocks():
        for block in stage:
            row = (block.expanded_channels, side, block.kernel_size, block.stride, block.squeezed_channels)
            found[DepthwiseShape(*row, expanded=block.expand_ratio > 1)] = True
            side = output_size(side, block.kernel_size, block.stride, 2 * symmetric_padding(block.kernel_size)[0])
    assert side == 7
    return list(found)


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=label)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", depthwise_shapes(), ids=label)
def test_block(shape: DepthwiseShape, layout: str, dtype: torch.dtype, padding: str, device: torch.device) -> None:
    """Training with gradients, then inference; the definition too is evaluated on the device, for its speed."""
    channels, side, kernel, stride, squeezed, expanded = shape
    if padding == "same" and stride == 1:
        pytest.skip("at stride 1 both paddings are the same")
    pads = symmetric_padding(kernel) if padding == "symmetric" else same_padding(side, side, kernel, stride)
    for mode, gradient in (("training", True), ("frozen", False)):
        case = mbconv_core_case(
            (BATCH, channels, side, side),
            kernel=kernel,
            stride=stride,
            padding=pads,
            squeezed=squeezed,
            dtype=dtype,
            layout=layout,
            bn1=mode if expanded else None,
            bn2=mode,
        )
        check_parity(case.on(device), gradient=gradient)
