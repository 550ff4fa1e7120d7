"""How many kernels Triton compiles before EfficientNet-B0 trains at full speed, and that a batch size costs none."""

import re

import pytest

from triton_resources.toolkit import SMALL_BATCHES, USUAL_BATCHES, result

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MOST = {"channels_last": 55, "nchw": 66}
"""Kernels of a training step in one dtype."""


@pytest.fixture(params=sorted(MOST))
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def by_batch(layout: str) -> dict[int, list[str]]:
    """What is compiled for a training step, by its batch size."""
    return {int(batch): kernels for batch, kernels in result("launches")[layout].items()}


def name(specialisation: str) -> str:
    return specialisation.partition("(")[0]


def plain(specialisation: str) -> str:
    """Without what Triton finds out about values: that a size is a multiple of 16, or 1."""
    return re.sub(r"\b([a-z_0-9]+)=1\b", r"\1: i32", specialisation.replace(" aligned", ""))


def test_training_needs_no_more_kernels(layout: str, by_batch: dict[int, list[str]]) -> None:
    count = len(by_batch[USUAL_BATCHES[0]])
    assert count <= MOST[layout], "an argument may have become one that kernels are specialised to"
    assert count == MOST[layout], "fewer than ever: the limit can go down"


@pytest.mark.parametrize("batch", USUAL_BATCHES[1:])
def test_usual_batches_need_the_same_kernels(batch: int, by_batch: dict[int, list[str]]) -> None:
    new = set(by_batch[batch]) - set(by_batch[USUAL_BATCHES[0]])
    assert sorted(new) == []


@pytest.mark.parametrize("batch", SMALL_BATCHES)
def test_no_kernel_is_specialised_to_a_batch(batch: int, by_batch: dict[int, list[str]]) -> None:
    """With few images there are other kernels and blocks, but none that differ in what Triton knows of the numbers."""
    usual = by_batch[USUAL_BATCHES[0]]
    known = set(map(plain, usual))
    assert [kernel for kernel in by_batch[batch] if kernel not in usual and plain(kernel) in known] == []


def test_what_triton_knows_of_numbers() -> None:
    assert (
        plain("f(x: *fp32 aligned, n: i32 aligned, keep=None, BLOCK_C=1)")
        == "f(x: *fp32, n: i32, keep=None, BLOCK_C=1)"
    )
    assert plain("f(n=1, STRIDE=1, num_warps=8)") == plain("f(n: i32, STRIDE=1, num_warps=8)")


def test_every_kernel_of_training_is_recorded(by_batch: dict[int, list[str]]) -> None:
    """Without which the counts would say little."""
    kernels = {name(kernel) for kernel in by_batch[SMALL_BATCHES[0]]}
    streaming = {"statistics", "normalize", "pool", "backward_sums", "input_gradient"}
    depthwise = {"depthwise_forward", "depthwise_backward", "depthwise_sum"}
    excite = {"excite_hidden", "excite_scale", "excite_gradient", "excite_pooled", "excite_weights"}
    sums = {"merge_statistics", "move_running_stats", "merge_parts", "batch_norm_gradient"}
    assert kernels == streaming | depthwise | excite | sums


def test_depthwise_kernels_may_have_all_registers(by_batch: dict[int, list[str]]) -> None:
    """As launched on a GPU: what is recorded without it would be another kernel."""
    depthwise = [
        kernel for kernel in by_batch[USUAL_BATCHES[0]] if name(kernel) in ("depthwise_forward", "depthwise_backward")
    ]
    assert depthwise and all("maxnreg=255" in kernel for kernel in depthwise)
