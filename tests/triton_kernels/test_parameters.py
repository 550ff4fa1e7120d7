"""Parameters and running statistics in dtypes of their own."""

from cuda_kernels.test_parameters import (  # noqa: F401
    test_batch_norm_act_follows_batch_norm,
    test_cores_follow_batch_norm,
    test_dtypes,
    test_evaluation_leaves_them,
    test_half_statistics,
    test_statistics,
    test_statistics_may_be_views,
    test_training_updates_with_and_without_gradient,
    test_update_happens_once_per_forward,
)
