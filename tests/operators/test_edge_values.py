"""Empty batches, large means, outliers, and values that are not finite."""

import math

import pytest
import torch
from torch import Tensor

import effnet_kernels as ek
from operators.axes import ACTIVATIONS, LAYOUTS
from operators.cases import CASES, batch_norm_act_case, depthwise_conv_bn_act_case, laid_out, mbconv_core_case
from operators.parity import defined, evaluate, weighted_sum
from operators.sampling import label
from tolerances import assert_close

EPS = torch.finfo(torch.float32).eps


@pytest.mark.parametrize("training", [True, False], ids=("training", "frozen"))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", CASES)
def test_empty_batch(operator: str, layout: str, training: bool) -> None:
    """As in PyTorch: an empty output, gradients of zero, and running statistics as they were."""
    mode = "training" if training else "frozen"
    options = {
        "batch_norm_act": {"training": training, "keep": True, "residual": True},
        "depthwise_conv_bn_act": {"training": training, "stride": 2},
        "squeeze_excite": {},
        "mbconv_core": {"bn1": mode, "bn2": mode, "stride": 2},
    }[operator]
    case = CASES[operator]((0, 8, 9, 7), layout=layout, **options)
    result = evaluate(case.call, case.tensors)
    rows = 5 if "stride" in options else 9
    assert result.out.shape[:3] == (0, 8, rows)
    for name, g in result.gradients.items():
        assert torch.equal(g, torch.zeros_like(case.tensors[name])), f"gradient of {name}"
    for name, t in result.statistics.items():
        assert torch.equal(t, case.tensors[name]), name
    assert evaluate(case.call, case.tensors, gradient=False).out.shape == result.out.shape


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("offset", "bound"), [(1e3, 100 * EPS), (-3e4, EPS * 3e4 / 0.58)])
def test_variance_of_a_large_mean(offset: float, bound: float, layout: str) -> None:
    """Float32 accuracy at 1000 ± 1; at 30,000 ± 1 what rounding the pieces' means to float32 leaves.

    E[x²] − E[x]² in float32 would be off by eps · (mean / deviation)²: 0.4 and 300.
    """
    noise = torch.rand(4, 17, 20, 15, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = laid_out(noise + offset, layout)
    mean, var = torch.zeros(17), torch.zeros(17)
    ek.batch_norm_act(x, None, None, mean, var, momentum=1.0)
    assert_close(mean, x.double().mean((0, 2, 3)), 4 * EPS, "mean")
    assert_close(var, x.double().var((0, 2, 3)), bound, "var")


@pytest.mark.parametrize("operator", ["batch_norm_act", "depthwise_conv_bn_act", "mbconv_core"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_result_of_a_large_mean(layout: str, operator: str) -> None:
    """Right to what the rounding of x and y leaves: eps · |mean| / deviation, and not that squared.

    The weights' gradient is left out: it is Σ x dy with Σ dy = 0, and y has lost as many digits as x has.
    """
    options = {} if operator == "batch_norm_act" else {"padding": (0, 0, 0, 0)}
    case = CASES[operator]((4, 17, 12, 9), layout=layout, **options)
    noise = torch.rand(4, 17, 12, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1
    case = case.with_tensors(x=laid_out(noise + 1e3, layout))
    actual, expected = evaluate(case.call, case.tensors), defined(case)
    bound = 4 * EPS * 1e3 / 0.58
    for name, t in expected.tensors().items():
        if name != "dw":
            assert_close(actual.tensors()[name], t, bound, name)


@pytest.mark.parametrize("operator", ["batch_norm_act", "depthwise_conv_bn_act", "mbconv_core"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_huge_outlier(layout: str, operator: str) -> None:
    """One value of 10^6 among values of 1, at the last place, where a chunk's first guess of the mean knows nothing."""
    case = CASES[operator]((3, 8, 9, 7), layout=layout)
    x = case.tensors["x"].clone(memory_format=torch.preserve_format)
    x[-1, :, -1, -1] = 1e6
    case = case.with_tensors(x=x)
    actual, expected = evaluate(case.call, case.tensors), defined(case)
    assert_close(actual.out, expected.out, 1e-5, "out")
    for name, t in expected.statistics.items():
        assert_close(actual.statistics[name], t, 1e-5, name)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_constant_channels(layout: str, value: float) -> None:
    """No variance at all: the output is act(β), to what 1 / √eps makes of the mean's rounding."""
    x = laid_out(torch.full((3, 8, 9, 7), value), layout)
    beta = torch.linspace(-1, 1, 8)
    mean, var = torch.zeros(8), torch.ones(8)
    out = ek.batch_norm_act(x, None, beta, mean, var, momentum=1.0, eps=1e-5, activation="identity")
    rounding = 2 * EPS * abs(value)
    assert (out - beta.view(1, 8, 1, 1)).abs().max() <= rounding / math.sqrt(1e-5)
    assert (mean - value).abs().max() <= rounding
    assert var.min() >= 0 and var.max() <= rounding**2


SPECIAL = (math.inf, -math.inf, math.nan, -1e4, 1e4, -100.0, 100.0, 0.0, -0.0)


def same_specials(actual: Tensor, expected: Tensor, bound: float) -> None:
    """NaN where the definition has NaN, the same infinities, and close elsewhere."""
    assert torch.equal(actual.isnan(), expected.isnan())
    infinite = expected.isinf()
    assert torch.equal(actual.double()[infinite], expected.double()[infinite])
    finite = expected.isfinite()
    assert_close(actual[finite], expected[finite], bound, "finite elements")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=label)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_special_values_in_evaluation(activation: str, layout: str, dtype: torch.dtype) -> None:
    """Infinities and NaN come out where PyTorch has them, in a vector's body and in its tail."""
    case = batch_norm_act_case((1, 19, 1, 19), layout=layout, dtype=dtype, training=False, activation=activation)
    x = case.tensors["x"].clone(memory_format=torch.preserve_format)
    for place, value in enumerate(SPECIAL):
        x[0, place::9, 0, place] = value
        x[0, -1 - place, 0, -1] = value
    ones, zeros = torch.ones(19, dtype=case.tensors["mean"].dtype), torch.zeros(19, dtype=case.tensors["mean"].dtype)
    case = case.with_tensors(x=x, gamma=ones, var=ones, beta=zeros, mean=zeros)
    expected = defined(case, gradient=False).out
    bound = 1e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-6
    same_specials(evaluate(case.call, case.tensors, gradient=False).out, expected, bound)


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=("nan", "inf"))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bad_channel_stays_one_channel(layout: str, value: float) -> None:
    """In training one bad value spoils its channel, as in PyTorch, and leaves the others exactly as they were."""
    case = batch_norm_act_case((2, 17, 6, 5), layout=layout)
    good = evaluate(case.call, case.tensors)
    x = case.tensors["x"].clone(memory_format=torch.preserve_format)
    x[1, 3, 2, 2] = value
    case = case.with_tensors(x=x)
    bad, expected = evaluate(case.call, case.tensors), defined(case)
    assert torch.equal(bad.out.isnan(), expected.out.isnan())
    assert torch.equal(bad.gradients["x"].isnan(), expected.gradients["x"].isnan())
    others = [c for c in range(17) if c != 3]
    for name, t in bad.tensors().items():
        channels = 1 if t.dim() == 4 else 0
        assert not t.select(channels, 3).isfinite().any(), name
        kept = torch.tensor(others)
        assert torch.equal(t.index_select(channels, kept), good.tensors()[name].index_select(channels, kept)), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_a_bad_pixel_reaches_its_neighbourhood(kernel: int, layout: str) -> None:
    """NaN spreads as far as the kernel does, and padding multiplies nothing by a NaN from elsewhere."""
    case = depthwise_conv_bn_act_case((2, 9, 11, 12), kernel=kernel, layout=layout, training=False)
    for row, column in ((0, 0), (10, 11), (5, 6)):
        x = case.tensors["x"].clone(memory_format=torch.preserve_format)
        x[1, 4, row, column] = math.nan
        poisoned = case.with_tensors(x=x)
        for gradient in (True, False):
            actual = evaluate(poisoned.call, poisoned.tensors, gradient=gradient).out
            assert torch.equal(actual.isnan(), defined(poisoned, gradient=gradient).out.isnan())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bad_sample_stays_one_sample(layout: str) -> None:
    """With frozen statistics NaN passes squeeze-and-excite into all channels of its sample, and into no other."""
    case = mbconv_core_case((3, 8, 7, 6), layout=layout, bn1="frozen", bn2="frozen")
    x = case.tensors["x"].clone(memory_format=torch.preserve_format)
    x[1, 2, 3, 3] = math.nan
    poisoned = case.with_tensors(x=x)
    for gradient in (True, False):
        out = evaluate(poisoned.call, poisoned.tensors, gradient=gradient).out
        assert out[1].isnan().all()
        good = evaluate(case.call, case.tensors, gradient=gradient).out
        assert torch.equal(out[0::2], good[0::2])


@pytest.mark.parametrize("operator", ["batch_norm_act", "depthwise_conv_bn_act"])
def test_one_value_per_channel_raises(operator: str) -> None:
    """As PyTorch's BatchNorm does, and before the running statistics are touched."""
    case = CASES[operator]((1, 8, 1, 1))
    mean = case.tensors["mean"].clone()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        case.call(case.tensors)
    assert torch.equal(case.tensors["mean"], mean)


@pytest.mark.parametrize("frozen", ["bn1", "bn2"])
def test_one_value_per_channel_raises_in_either_batch_norm(frozen: str) -> None:
    modes = {"bn1": "training", "bn2": "training", frozen: "frozen"}
    case = mbconv_core_case((1, 8, 1, 1), **modes)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        case.call(case.tensors)


def test_one_output_pixel_raises_even_where_the_input_has_more() -> None:
    case = mbconv_core_case((1, 8, 2, 2), stride=2)
    before = {name: t.clone() for name, t in case.tensors.items()}
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        case.call(case.tensors)
    assert all(torch.equal(t, before[name]) for name, t in case.tensors.items())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", ["batch_norm_act", "depthwise_conv_bn_act", "mbconv_core"])
def test_two_values_per_channel(operator: str, layout: str) -> None:
    """The smallest batch that trains. A large eps, without which the gradient is what cancellation leaves."""
    case = CASES[operator]((2, 17, 1, 1), layout=layout, eps=0.3)
    actual, expected = evaluate(case.call, case.tensors, loss=weighted_sum), defined(case)
    for name, t in expected.tensors().items():
        assert_close(actual.tensors()[name], t, 1e-5, name)
