"""Arguments of the public operators: the small tuples that group them, and the checks that run before any work."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from effnet_kernels.activations import ACTIVATIONS, GATES

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
KERNEL_SIZES = (3, 5, 7)
STRIDES = (1, 2)

Padding = tuple[int, int, int, int]


class BatchNorm(NamedTuple):
    """One BatchNorm's tensors and settings, as ``torch.nn.functional.batch_norm`` takes them.

    ``mean`` and ``var`` are the running statistics: read when ``training`` is False, updated in place when it is
    True, and None where none are kept. ``gamma`` and ``beta`` may be None (``affine=False``). ``momentum`` may be a
    tensor of no dimensions.
    """

    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor | None = None
    var: Tensor | None = None
    training: bool = True
    momentum: float | Tensor = 0.1
    eps: float = 1e-5


class SqueezeExcite(NamedTuple):
    """Squeeze-and-excite's two fully connected layers: (S, C), (S,), (C, S), (C,); trailing 1×1 dimensions allowed."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor


def symmetric_padding(kernel_size: int) -> Padding:
    """(top, bottom, left, right) that keeps the size at stride 1."""
    half = (kernel_size - 1) // 2
    return (half, half, half, half)


def same_padding(height: int, width: int, kernel_size: int, stride: int) -> Padding:
    """TensorFlow's SAME: output ⌈size / stride⌉, the odd row and column at the bottom and right."""

    def total(size: int) -> int:
        return max((-(-size // stride) - 1) * stride + kernel_size - size, 0)

    rows, columns = total(height), total(width)
    return (rows // 2, rows - rows // 2, columns // 2, columns - columns // 2)


def output_size(size: int, kernel_size: int, stride: int, padding: int) -> int:
    """Length of one axis after the convolution; ``padding`` is the sum of both sides."""
    return (size + padding - kernel_size) // stride + 1


def check_activation(name: str, argument: str = "activation") -> None:
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(f"{argument}: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")


def check_gate(name: str) -> None:
    if not isinstance(name, str) or name not in GATES:
        raise ValueError(f"gate: expected one of {', '.join(GATES)}, got {name!r}")


def check_activations_tensor(x: Tensor, argument: str) -> None:
    """``x`` is a strided (N, C, H, W) tensor of a supported dtype, with C, H, W ≥ 1."""
    check_strided(x, argument)
    if x.dim() != 4:
        raise ValueError(f"{argument}: expected 4 dimensions (N, C, H, W), got shape {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{argument}: expected float32, float16, bfloat16 or float64, got {x.dtype}")
    if x.shape[1] < 1 or x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f"{argument}: expected C, H, W of at least 1, got shape {tuple(x.shape)}")


def check_strided(t: Tensor, argument: str) -> None:
    """``t`` is a tensor that has strides: neither sparse nor nested, nor another library's."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{argument}: expected a Tensor, got {type(t).__name__}")
    if t.layout != torch.strided or t.is_nested:
        raise TypeError(f"{argument}: expected a strided tensor, got {'nested' if t.is_nested else t.layout}")


def check_number(value: float, argument: str) -> None:
    if not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{argument}: expected a number, got {value!r}")


def check_parameter(t: Tensor, argument: str, shape: tuple[int, ...], like: Tensor) -> None:
    """``t`` is a floating tensor of ``shape`` on the device of ``like``; trailing dimensions of 1 are free."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{argument}: expected a Tensor of shape {shape}, got {type(t).__name__}")
    check_strided(t, argument)
    got = t.shape
    if got != shape and (got[: len(shape)] != shape or any(extent != 1 for extent in got[len(shape) :])):
        raise ValueError(f"{argument}: expected shape {shape}, got {tuple(t.shape)}")
    if t.dtype not in DTYPES:
        raise TypeError(f"{argument}: expected a floating dtype, got {t.dtype}")
    if t.device != like.device:
        raise ValueError(f"{argument}: expected device {like.device}, got {t.device}")


def check_vector(t: Tensor, argument: str, extent: int, like: Tensor) -> None:
    """``t`` is a floating tensor of shape (extent,) on the device of ``like``."""
    check_parameter(t, argument, (extent,), like)
    if t.dim() != 1:
        raise ValueError(f"{argument}: expected shape ({extent},), got {tuple(t.shape)}")


def check_batch_norm(bn: BatchNorm, count: int, channels: int, like: Tensor, suffix: str = "") -> None:
    """Shapes and settings of ``bn`` for ``channels`` channels of ``count`` values each."""
    if not isinstance(bn, BatchNorm):
        raise TypeError(f"bn{suffix}: expected a BatchNorm, got {type(bn).__name__}")
    if not isinstance(bn.training, bool):
        raise TypeError(f"training{suffix}: expected True or False, got {bn.training!r}")
    if not isinstance(bn.momentum, Tensor):
        check_number(bn.momentum, f"momentum{suffix}")
    check_number(bn.eps, f"eps{suffix}")
    for name, t in (("gamma", bn.gamma), ("beta", bn.beta), ("mean", bn.mean), ("var", bn.var)):
        if t is not None:
            check_vector(t, name + suffix, channels, like)
    if (bn.mean is None) != (bn.var is None):
        raise ValueError(f"mean{suffix}, var{suffix}: expected both or neither, got one of them")
    if not bn.training and bn.mean is None:
        raise ValueError(f"mean{suffix}, var{suffix}: expected running statistics when training is False, got None")
    if bn.training and count == 1:
        raise ValueError(f"training: expected more than 1 value per channel, got 1 (input shape {tuple(like.shape)})")
    if not bn.eps >= 0:
        raise ValueError(f"eps{suffix}: expected a non-negative number, got {bn.eps}")
    if bn.training and bn.eps == 0:
        raise ValueError(f"eps{suffix}: expected a positive number in training, got {bn.eps}")
    if bn.training:
        for name, t in (("mean", bn.mean), ("var", bn.var)):
            if t is not None:
                _check_written(t, name + suffix)


def _check_written(t: Tensor, argument: str) -> None:
    """Every element of ``t``, which an operator writes, has memory of its own."""
    if t.is_contiguous():
        return
    if any(extent > 1 and step == 0 for extent, step in zip(t.shape, t.stride(), strict=True)):
        raise ValueError(f"{argument}: expected memory of its own for every channel, got an expanded tensor")


def check_squeeze_excite(se: SqueezeExcite, channels: int, like: Tensor) -> None:
    if not isinstance(se, SqueezeExcite):
        raise TypeError(f"se: expected a SqueezeExcite, got {type(se).__name__}")
    if isinstance(se.w1, Tensor):
        check_strided(se.w1, "w1")
    if not isinstance(se.w1, Tensor) or se.w1.dim() < 2:
        raise ValueError(f"w1: expected shape (S, {channels}), got {getattr(se.w1, 'shape', se.w1)}")
    squeezed = se.w1.shape[0]
    if squeezed < 1:
        raise ValueError("w1: expected at least one squeezed channel, got none")
    check_parameter(se.w1, "w1", (squeezed, channels), like)
    check_parameter(se.b1, "b1", (squeezed,), like)
    check_parameter(se.w2, "w2", (channels, squeezed), like)
    check_parameter(se.b2, "b2", (channels,), like)


def check_pointwise(w: Tensor, argument: str, in_channels: int, like: Tensor) -> None:
    """``w`` is the weight (O, in_channels, 1, 1) of a 1×1 convolution."""
    if isinstance(w, Tensor):
        check_strided(w, argument)
    if not isinstance(w, Tensor) or w.dim() != 4 or w.shape[0] < 1:
        got = getattr(w, "shape", type(w).__name__)
        raise ValueError(f"{argument}: expected shape (O, {in_channels}, 1, 1), got {got}")
    check_parameter(w, argument, (w.shape[0], in_channels, 1, 1), like)


def check_depthwise(
    w: Tensor, x: Tensor, stride: int, padding: int | Sequence[int] | None, channels: int | None = None
) -> Padding:
    """Check a depthwise weight (C, 1, K, K), stride and padding against ``x``; the padding as four numbers.

    ``channels``: C where it is not that of ``x``, whose height, width and device are the convolution's all the same.
    """
    channels = x.shape[1] if channels is None else channels
    if isinstance(w, Tensor):
        check_strided(w, "w")
    if not isinstance(w, Tensor) or w.dim() != 4:
        raise ValueError(f"w: expected shape ({channels}, 1, K, K), got {getattr(w, 'shape', type(w).__name__)}")
    kernel_size = w.shape[2]
    if kernel_size not in KERNEL_SIZES or w.shape[3] != kernel_size:
        raise ValueError(f"w: expected a 3×3, 5×5 or 7×7 kernel, got {kernel_size}×{w.shape[3]}")
    check_parameter(w, "w", (channels, 1, kernel_size, kernel_size), x)
    if not isinstance(stride, int) or stride not in STRIDES:
        raise ValueError(f"stride: expected 1 or 2, got {stride!r}")
    pads = _four_paddings(padding, kernel_size)
    for axis, total in (("H", pads[0] + pads[1]), ("W", pads[2] + pads[3])):
        extent = x.shape[2] if axis == "H" else x.shape[3]
        if extent + total < kernel_size:
            raise ValueError(
                f"x: {axis} of {extent} with padding {total} is smaller than the {kernel_size}×{kernel_size} kernel"
            )
    return pads


def _four_paddings(padding: int | Sequence[int] | None, kernel_size: int) -> Padding:
    if padding is None:
        return symmetric_padding(kernel_size)
    pads = tuple(padding) if isinstance(padding, Sequence) else (padding,) * 4
    if len(pads) != 4:
        raise ValueError(f"padding: expected one number or (top, bottom, left, right), got {padding!r}")
    if any(not isinstance(p, (int, torch.SymInt)) or not 0 <= p < kernel_size for p in pads):
        raise ValueError(f"padding: expected integers from 0 to {kernel_size - 1}, got {padding!r}")
    return (pads[0], pads[1], pads[2], pads[3])
