"""The values that parity is sampled over, and which combinations are calls that an operator accepts."""

import torch

from effnet_kernels.arguments import Padding, output_size, symmetric_padding
from operators.sampling import Row

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAYOUTS = ("nchw", "channels_last")
ACTIVATIONS = ("identity", "relu", "relu6", "silu", "hardswish")
GATES = ("sigmoid", "hardsigmoid")
PARAMETERS = ("float32", "same")

SHAPES = (
    (2, 8, 5, 7),
    (3, 1, 13, 9),
    (35, 3, 2, 3),
    (1, 17, 7, 7),
    (2, 24, 1, 40),
    (2, 40, 16, 16),
    (3, 48, 6, 5),
    (1, 144, 14, 14),
    (35, 8, 1, 1),
    (2, 17, 33, 3),
)
"""Channels below, at and between the vector widths; odd, single and long rows; one sample and many."""

PADDINGS = ("symmetric", "same", "none", "odd", "corner")


def padding(name: str, kernel: int) -> Padding:
    """Four numbers by name. ``same`` is TensorFlow's at stride 2 and an even size: the odd row comes last."""
    half = (kernel - 1) // 2
    return {
        "symmetric": symmetric_padding(kernel),
        "same": (half - 1, half, half - 1, half),
        "none": (0, 0, 0, 0),
        "odd": (2, 0, 1, 1),
        "corner": (kernel - 1, 0, 0, kernel - 1),
    }[name]


def geometry(row: Row) -> Row:
    """``row`` with the padding's name replaced by its numbers."""
    return {**row, "padding": padding(row["padding"], row["kernel"])}


def undone(row: Row, training: bool) -> bool:
    """Whether BatchNorm in training undoes the convolution, whose gradient is then what rounding leaves.

    Of a kernel over a single pixel only one tap sees anything, and the scale of its output is normalised away.
    """
    return training and row["shape"][2:] == (1, 1)


def off_the_corners(row: Row) -> bool:
    """Whether no activation is asked for its derivative exactly where it has none.

    Half activations and a half running mean lie on one grid: without β their difference is often 0, on which side of
    ReLU's corner rounding decides.
    """
    half = row["dtype"] in (torch.bfloat16, torch.float16)
    return row["affine"] or not (half and row["parameters"] == "same")


def fits(row: Row) -> bool:
    """Whether the convolution of ``row`` leaves an output, of more than three values per channel.

    With two or three values per channel, the gradient through BatchNorm in training is what cancellation leaves.
    """
    (batch, _, height, width), kernel, stride = row["shape"], row["kernel"], row["stride"]
    top, bottom, left, right = padding(row["padding"], kernel)
    if height + top + bottom < kernel or width + left + right < kernel:
        return False
    rows = output_size(height, kernel, stride, top + bottom)
    columns = output_size(width, kernel, stride, left + right)
    return batch * rows * columns > 3
