"""The same bits from run to run, and for any number of threads."""

import pytest
import torch

from operators.axes import LAYOUTS
from operators.cases import CASES, CPU_CASES, EVERY_CASE, Case
from operators.parity import check_identical, evaluate
from operators.sampling import label


def large_case(operator: str, layout: str, dtype: torch.dtype) -> Case:
    """Large enough that a kernel splits it, into pieces that do not divide it."""
    options = {
        "batch_norm_act": {"keep": True, "residual": True},
        "depthwise_conv_bn_act": {"kernel": 5, "stride": 1},
        "squeeze_excite": {"squeezed": 10},
        "mbconv_core": {"kernel": 3, "stride": 2, "squeezed": 10},
        "pointwise_conv": {"out_channels": 70},
        "mbconv": {"expanded": 121, "out_channels": 33, "stride": 2, "squeezed": 10},
    }[operator]
    return EVERY_CASE[operator]((3, 41, 45, 43), layout=layout, dtype=dtype, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=label)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", EVERY_CASE)
def test_any_number_of_threads(operator: str, layout: str, dtype: torch.dtype) -> None:
    if operator in CPU_CASES and layout == "nchw":
        pytest.skip("in NCHW the 1×1 convolutions are PyTorch's")
    case = large_case(operator, layout, dtype)
    for gradient in (True, False):
        torch.set_num_threads(1)
        expected = evaluate(case.call, case.tensors, gradient=gradient)
        for threads in (2, 3, 2):
            torch.set_num_threads(threads)
            check_identical(evaluate(case.call, case.tensors, gradient=gradient), expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1, 90, 97), (97, 3, 2, 2), (1, 300, 3, 3), (2, 3, 3, 400)], ids=label)
def test_any_shape(shape: tuple[int, int, int, int], layout: str, threads: int) -> None:
    """One channel, one pixel or one sample is the axis that leaves a naive split nothing to share out."""
    case = CASES["mbconv_core"](shape, layout=layout)
    torch.set_num_threads(1)
    expected = evaluate(case.call, case.tensors)
    torch.set_num_threads(threads)
    check_identical(evaluate(case.call, case.tensors), expected)


@pytest.mark.parametrize("operator", CASES)
def test_a_sample_does_not_depend_on_its_batch(operator: str) -> None:
    """In inference, sample by sample gives the bits of the whole batch."""
    frozen = {"mbconv_core": {"bn1": "frozen", "bn2": "frozen"}, "squeeze_excite": {}}
    case = CASES[operator]((3, 17, 9, 8), **frozen.get(operator, {"training": False}))
    whole = evaluate(case.call, case.tensors, gradient=False).out
    for n in range(3):
        alone = case.with_tensors(x=case.tensors["x"][n : n + 1])
        assert torch.equal(evaluate(alone.call, alone.tensors, gradient=False).out[0], whole[n])
