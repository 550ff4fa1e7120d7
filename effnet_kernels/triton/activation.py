"""Activation maths inside Triton kernels: one definition of value and slope for forward and backward.

The same formulas, and the same values at the corners, as csrc/common/activation_math.h.
"""

import triton
import triton.language as tl

from effnet_kernels.activations import CODES

_IDENTITY = tl.constexpr(CODES["identity"])
_RELU = tl.constexpr(CODES["relu"])
_RELU6 = tl.constexpr(CODES["relu6"])
_SILU = tl.constexpr(CODES["silu"])
_HARDSWISH = tl.constexpr(CODES["hardswish"])
_SIGMOID = tl.constexpr(CODES["sigmoid"])
_HARDSIGMOID = tl.constexpr(CODES["hardsigmoid"])


@triton.jit
def _clamp_0_6(v):
    # Comparisons are written so that NaN reaches the result.
    return tl.where(v <= 0, 0.0, tl.where(v >= 6, 6.0, v))


@triton.jit
def value_and_slope(v, ACTIVATION: tl.constexpr):
    """φ(v) and φ'(v) in float32; the compiler drops what is not used."""
    if ACTIVATION == _IDENTITY:
        value = v
        slope = tl.full(v.shape, 1.0, tl.float32)
    elif ACTIVATION == _RELU:
        value = tl.where(v <= 0, 0.0, v)
        slope = tl.where(v <= 0, 0.0, 1.0)
    elif ACTIVATION == _RELU6:
        value = _clamp_0_6(v)
        slope = tl.where((v <= 0) | (v >= 6), 0.0, 1.0)
    elif ACTIVATION == _SILU:
        sigmoid = 1 / (1 + tl.exp(-v))
        value = v * sigmoid
        slope = sigmoid * (1 + v * (1 - sigmoid))
    elif ACTIVATION == _HARDSWISH:
        value = v * _clamp_0_6(v + 3) * (1 / 6)
        slope = tl.where(v <= -3, 0.0, tl.where(v >= 3, 1.0, v * (1 / 3) + 0.5))
    elif ACTIVATION == _SIGMOID:
        value = 1 / (1 + tl.exp(-v))
        slope = value * (1 - value)
    else:
        tl.static_assert(ACTIVATION == _HARDSIGMOID)
        value = _clamp_0_6(v + 3) * (1 / 6)
        slope = tl.where((v <= -3) | (v >= 3), 0.0, 1 / 6)
    return value, slope
