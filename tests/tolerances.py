"""How far a result may be from its definition in float64: one table by dtype, and the comparison that uses it."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """Bounds on ‖actual − expected‖ / ‖expected‖ in the 2-norm."""

    forward: float
    gradient: float


TOLERANCES = {
    torch.float64: Tolerance(forward=1e-12, gradient=1e-11),
    torch.float32: Tolerance(forward=2e-6, gradient=1e-5),
    torch.float16: Tolerance(forward=2e-3, gradient=4e-3),
    torch.bfloat16: Tolerance(forward=1.5e-2, gradient=3e-2),
}
"""Bounds by the dtype of the activations.

Half types: one rounding of the output costs at most eps / 2 per element (eps is 9.8e-4 for float16, 7.8e-3 for
bfloat16). Everything between is accumulated in float32, except that the depthwise output y is stored in the
activations' dtype, and the gradient of BN1's output is stored once before its last pass: three roundings of eps / 2 at
the worst, so 2 eps forward, and 4 eps for gradients, where the sums of BatchNorm's backward cancel.

float32 (eps 1.2e-7): a convolution of 49 terms, two normalisations by sums over up to 10^4 values, and activations
whose exponential is good to a few eps: 16 eps forward, 80 eps for gradients. float64 (eps 2.2e-16): the same operations
with the definition's own rounding of equal size on the other side, and libraries' exponentials in between.
"""

WORST_ELEMENT = 4.0
"""The largest error of one element, relative to the largest element, in units of the bound on the norm.

The norm alone would let one wrong pixel in ten thousand pass in half precision.
"""


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in float64; infinite where a zero is missed, NaN where there is a NaN."""
    actual, expected = actual.detach().double(), expected.detach().double()
    error, size = float((actual - expected).norm()), float(expected.norm())
    if error == 0:
        return 0.0
    return error / size if size else math.inf


def worst_element(actual: Tensor, expected: Tensor) -> float:
    """max |actual − expected| / max |expected| in float64."""
    actual, expected = actual.detach().double(), expected.detach().double()
    error, size = float((actual - expected).abs().max()), float(expected.abs().max())
    if error == 0:
        return 0.0
    return error / size if size else math.inf


def assert_close(actual: Tensor, expected: Tensor, bound: float, what: str) -> None:
    """``actual`` has the shape of ``expected`` and is within ``bound`` of it; a NaN is never close."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if expected.numel() == 0:
        return
    error = relative_error(actual, expected)
    assert error <= bound, f"{what}: relative error {error:.2e} is over {bound:.1e}"
    worst = worst_element(actual, expected)
    assert worst <= WORST_ELEMENT * bound, f"{what}: worst element {worst:.2e} is over {WORST_ELEMENT * bound:.1e}"
