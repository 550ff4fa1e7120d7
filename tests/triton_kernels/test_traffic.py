"""Bytes of every pass on the depthwise shapes of EfficientNet-B0, as the programs' own loads and stores touch them."""

import pytest
import torch

from effnet_kernels.arguments import output_size
from gpu.test_b0_shapes import DepthwiseShape, depthwise_shapes
from operators.axes import LAYOUTS
from operators.cases import laid_out, mbconv_core_case
from operators.parity import evaluate
from operators.sampling import label
from triton_kernels.interpreter import Row, Traffic, counted

IMAGES = 2
CHANNELS = 40
DTYPE = torch.bfloat16
SHAPES = list(
    dict.fromkeys((CHANNELS, *shape[1:4], 10, True) for shape in depthwise_shapes() if shape[5] and shape[1] <= 28)
)
"""Of blocks with an expansion, for one without has no BN1; with channels and sides that the interpreter has time for.

Bytes grow with both in proportion, but for the vectors' share, which shrinks with the side.
"""

TRAINING = {
    "statistics": (1, 0),
    "normalize": (2, 2),
    "depthwise_forward": (1, 1),
    "pool": (0, 1),
    "backward_sums": (0, 2),
    "input_gradient": (3, 3),
    "depthwise_backward": (2, 1),
}
"""Ein and Eout of each kernel over a step; together 9 and 10, as effnet_kernels/triton/mbconv_core.py says."""

ACTIVATIONS = {"x", "y", "u", "grad", "dy", "out", "dx"}
"""Names of activation-sized arguments."""

PARTS = {"partial", "moments"}
"""Of parts: at most about a thousand however large the batch is; at this one, one for each tile."""

INFERENCE = {"normalize": (2, 2), "depthwise_forward": (1, 1)}


def moved(shape: DepthwiseShape, layout: str, *, training: bool) -> Traffic:
    channels, side, kernel, stride, squeezed, _ = shape
    mode = "training" if training else "frozen"
    case = mbconv_core_case(
        (IMAGES, channels, side, side),
        kernel=kernel,
        stride=stride,
        squeezed=squeezed,
        dtype=DTYPE,
        layout=layout,
        bn1=mode,
        bn2=mode,
    )
    with counted() as traffic:
        # The gradient in the layout of the output, of which no copy is then made.
        evaluate(case.call, case.tensors, gradient=training, loss=lambda out: (out * laid_out(out, layout)).sum())
    return traffic


def sizes(shape: DepthwiseShape) -> tuple[int, int]:
    """Bytes of Ein and Eout."""
    channels, side, kernel, stride, _, _ = shape
    out = output_size(side, kernel, stride, 2 * ((kernel - 1) // 2))
    return tuple(IMAGES * channels * s * s * DTYPE.itemsize for s in (side, out))  # type: ignore[return-value]


def activations_of(rows: list[Row], kernel: str) -> int:
    return sum(row.sectors for row in rows if row.kernel == kernel and row.tensor in ACTIVATIONS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "training"), [*((shape, True) for shape in SHAPES), (SHAPES[0], False), (SHAPES[1], False)], ids=label
)
def test_activations(shape: DepthwiseShape, training: bool, layout: str) -> None:
    """Each kernel touches each sector of the tensors it should as often as it should, and nothing else is as large."""
    traffic = moved(shape, layout, training=training)
    e_in, e_out = sizes(shape)
    expected = {kernel: a * e_in + b * e_out for kernel, (a, b) in (TRAINING if training else INFERENCE).items()}
    assert {kernel: activations_of(traffic.rows, kernel) for kernel in expected} == expected
    others = [row for row in traffic.rows if row.tensor not in ACTIVATIONS | PARTS]
    assert max(row.sectors for row in others) < e_out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_taps_are_read_again(layout: str) -> None:
    """What the cache has to serve: K² times the tensor, less what lies outside the image."""
    shape = next(shape for shape in SHAPES if shape[1:4] == (14, 5, 1))
    rows = moved(shape, layout, training=True).rows
    (taps,) = (row for row in rows if (row.kernel, row.tensor) == ("depthwise_forward", "x"))
    e_in, _ = sizes(shape)
    assert 0.7 * 25 * e_in < taps.requested < 25 * e_in
    assert taps.sectors == e_in


def test_launches() -> None:
    """Of one MBConv block with SE, forward and backward."""
    traffic = moved(SHAPES[-1], "channels_last", training=True)
    forward = ["statistics", "merge_statistics", "normalize", "depthwise_forward", "merge_statistics", "pool"]
    forward += ["excite_hidden", "excite_scale", "normalize"]
    statistics = ["move_running_stats", "move_running_stats"]
    backward = ["backward_sums", "excite_gradient", "excite_pooled", "excite_weights", "batch_norm_gradient"]
    backward += ["input_gradient", "depthwise_backward", "depthwise_sum", "input_gradient"]
    assert traffic.launches == forward + statistics + backward
