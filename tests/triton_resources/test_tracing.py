"""torch.compile sees through the Triton operators, down to every kernel and what it writes; no GPU is needed."""

import pytest

from triton_resources.toolkit import result

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

WRITES = {
    "statistics": ["moments"],
    "merge_statistics": ["mean", "var"],
    "depthwise_forward": ["out", "moments"],
    "normalize": ["out"],
    "pool": ["z_sum", "a3", "a5"],
    "merge_parts": ["out"],
    "excite_hidden": ["pooled", "hidden"],
    "excite_scale": ["logits", "scale"],
    "backward_sums": ["a1", "a2", "a4"],
    "excite_gradient": ["scale", "dlogits", "dhidden"],
    "excite_pooled": ["dpooled"],
    "excite_weights": ["dw1", "db1", "dw2", "db2"],
    "batch_norm_gradient": ["dgamma", "dbeta", "mean_dv", "mean_dv_x"],
    "input_gradient": ["dx"],
    "depthwise_backward": ["dx", "partial"],
    "depthwise_sum": ["dw", "dgamma", "dbeta", "mean_dv", "mean_dv_x"],
}
"""All that a kernel writes. Had torch to guess, it would be every tensor, and each a copy."""

FORWARD = [
    "statistics",
    "merge_statistics",
    "normalize",
    "depthwise_forward",
    "merge_statistics",
    "pool",
    "excite_hidden",
    "excite_scale",
    "normalize",
]
BACKWARD = [
    "backward_sums",
    "excite_gradient",
    "excite_pooled",
    "excite_weights",
    "batch_norm_gradient",
    "input_gradient",
    "depthwise_backward",
    "depthwise_sum",
    "input_gradient",
]


@pytest.mark.parametrize("layout", ["channels_last", "nchw"])
def test_graphs_hold_the_kernels(layout: str) -> None:
    """Of mbconv_core in training, and nothing else but PyTorch's own operators: none of ours, which would be opaque."""
    forward, backward = result("trace")[layout]
    # Of the two sums that SE's backward needs, where an image is shared out among programs.
    merged = ["merge_parts", "merge_parts"] if layout == "channels_last" else []
    assert [call.get("kernel", call) for call in forward] == [*FORWARD[:6], *merged, *FORWARD[6:]]
    assert [call.get("kernel", call) for call in backward] == BACKWARD
    for call in (*forward, *backward):
        assert call["node"] == "triton_kernel_wrapper_functional"
        assert call["writes"] == WRITES[call["kernel"]], call["kernel"]
