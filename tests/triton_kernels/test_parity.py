"""Every operator against its definition in float64, over half of the samples of the CPU's and the CUDA kernels.

The interpreter takes a hundred times as long as either.
"""

import pytest

from cuda_kernels.test_parity import (  # noqa: F401
    ROWS,
    test_activations_reach_their_flat_parts,
    test_double_backward_is_refused,
    test_dropped_samples_pass_the_residual_through,
    test_every_activation,
    test_every_activation_and_gate,
    test_every_activation_and_gate_alone,
    test_geometry,
    test_half_types,
    test_hardsigmoid_reaches_its_flat_parts,
    test_one_gradient_alone,
    test_padding_forms_agree,
    test_parts,
    test_pooling_keeps_float32_accuracy_over_many_half_values,
    test_residual_in_the_other_layout,
    test_residual_may_need_the_only_gradient,
    test_same_padding_is_tensorflows,
    test_zeros_around_the_image_are_outside_bn1,
)
from operators.cases import CASES
from operators.parity import check_parity
from operators.sampling import Row, label


@pytest.mark.parametrize(("operator", "row"), ROWS[::2], ids=label)
def test_gradients(operator: str, row: Row) -> None:
    check_parity(CASES[operator](**row))


@pytest.mark.parametrize(("operator", "row"), ROWS[1::4], ids=label)
def test_without_gradient(operator: str, row: Row) -> None:
    check_parity(CASES[operator](**row), gradient=False)
