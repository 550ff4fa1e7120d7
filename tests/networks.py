"""A small network with every kind of block, and images for it: for tests of whole networks that must be quick."""

from typing import Any

import torch
from torch import Tensor, nn

import effnet
from effnet.config import Stage, Variant

SMALL = Variant(
    "small",
    (
        Stage("fused_mbconv", 3, 2, 2, 8, 1),
        Stage("mbconv", 3, 2, 1, 8, 1),
        Stage("mbconv", 5, 1, 3, 8, 2),
    ),
    width=1.0,
    depth=1.0,
    resolution=32,
    dropout=0.2,
    stem_channels=8,
    head_channels=16,
    drop_connect=0.2,
)
BLOCKS = ("stages.0.0", "stages.1.0", "stages.2.0", "stages.2.1")


def small(*, dtype: torch.dtype = torch.float32, **arguments: Any) -> Any:
    """The network, the same for the same arguments, with statistics and affine parameters in which nothing cancels."""
    torch.manual_seed(0)
    model = effnet.create_model(SMALL, **{"num_classes": 5, "fused": True, **arguments})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.to(dtype)


def images(batch: int = 3, size: int = 24, *, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def agree(actual: Tensor, expected: Tensor) -> None:
    """Equal in float64 but for rounding; the absolute part is for what is zero in exact arithmetic."""
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-11)
