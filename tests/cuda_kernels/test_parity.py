"""Every operator against its definition in float64, over the same samples as the CPU's own kernels."""

import pytest
import torch

from gpu.test_gradients import test_finite_differences  # noqa: F401
from operators import test_batch_norm_act, test_depthwise_conv_bn_act, test_mbconv_core, test_squeeze_excite
from operators.axes import geometry
from operators.cases import CASES
from operators.parity import check_parity
from operators.sampling import Row, label
from operators.test_batch_norm_act import (  # noqa: F401
    test_activations_reach_their_flat_parts,
    test_dropped_samples_pass_the_residual_through,
    test_every_activation,
    test_residual_in_the_other_layout,
    test_residual_may_need_the_only_gradient,
)
from operators.test_depthwise_conv_bn_act import (  # noqa: F401
    test_geometry,
    test_padding_forms_agree,
    test_same_padding_is_tensorflows,
)
from operators.test_gradients import test_double_backward_is_refused, test_one_gradient_alone  # noqa: F401
from operators.test_large import test_convolutions, test_inference, test_pointwise  # noqa: F401
from operators.test_mbconv_core import (  # noqa: F401
    test_every_activation_and_gate,
    test_half_types,
    test_parts,
    test_zeros_around_the_image_are_outside_bn1,
)
from operators.test_opcheck import test_opcheck  # noqa: F401
from operators.test_squeeze_excite import (
    test_every_activation_and_gate as test_every_activation_and_gate_alone,  # noqa: F401
)
from operators.test_squeeze_excite import (  # noqa: F401
    test_hardsigmoid_reaches_its_flat_parts,
    test_pooling_keeps_float32_accuracy_over_many_half_values,
)


def narrowed(row: Row) -> Row:
    """``row`` in float32 where it is in float64: its other values are then paired as before."""
    return {**row, "dtype": torch.float32} if row["dtype"] == torch.float64 else row


SAMPLES: dict[str, list[Row]] = {
    "batch_norm_act": test_batch_norm_act.SAMPLE,
    "depthwise_conv_bn_act": [geometry(row) for row in test_depthwise_conv_bn_act.SAMPLE],
    "squeeze_excite": test_squeeze_excite.SAMPLE,
    "mbconv_core": [geometry(row) for row in test_mbconv_core.SAMPLE],
}
ROWS = [(operator, narrowed(row)) for operator, rows in SAMPLES.items() for row in rows]


@pytest.fixture
def device() -> torch.device:
    """Where the tests that are written for a GPU put their tensors."""
    return torch.device("cpu")


@pytest.mark.parametrize(("operator", "row"), ROWS[::2], ids=label)
def test_gradients(operator: str, row: Row) -> None:
    check_parity(CASES[operator](**row))


@pytest.mark.parametrize(("operator", "row"), ROWS[1::2], ids=label)
def test_without_gradient(operator: str, row: Row) -> None:
    check_parity(CASES[operator](**row), gradient=False)
