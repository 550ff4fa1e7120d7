"""Tensors that are not dense, or begin anywhere in a vector, and gradients in any layout."""

from cuda_kernels.test_memory import (  # noqa: F401
    test_backward_twice_from_the_same_saved_tensors,
    test_gradients_in_any_layout,
    test_layouts_that_coincide,
    test_one_misaligned_tensor_of_several,
    test_saved_tensors,
    test_strided_parameters,
    test_views,
)
