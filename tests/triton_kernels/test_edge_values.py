"""Empty batches, large means, outliers and values that are not finite: the tests of the CPU's own kernels."""

from operators.test_edge_values import (  # noqa: F401
    test_a_bad_channel_stays_one_channel,
    test_a_bad_pixel_reaches_its_neighbourhood,
    test_a_bad_sample_stays_one_sample,
    test_constant_channels,
    test_empty_batch,
    test_huge_outlier,
    test_one_output_pixel_raises_even_where_the_input_has_more,
    test_one_value_per_channel_raises,
    test_one_value_per_channel_raises_in_either_batch_norm,
    test_result_of_a_large_mean,
    test_special_values_in_evaluation,
    test_two_values_per_channel,
    test_variance_of_a_large_mean,
)
