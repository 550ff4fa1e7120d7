"""``pointwise_conv`` and ``mbconv``, the CPU's matrix products and what is in them, against their definitions."""

import pytest
import torch
import torch.nn.functional as F

import effnet_kernels as ek
from operators.axes import ACTIVATIONS, DTYPES, PARAMETERS
from operators.cases import Case, laid_out, mbconv_case, pointwise_conv_case
from operators.parity import check_parity, defined, evaluate, weighted_sum
from operators.recording import Recorder
from operators.sampling import Row, label, pairwise
from tolerances import assert_close

EPS = torch.finfo(torch.float32).eps


def operators_called(case: Case, *, gradient: bool = True) -> set[str]:
    with Recorder() as recorder:
        evaluate(case.call, case.tensors, gradient=gradient)
    return {name for name, _ in recorder.calls}


# From fewer rows, columns or channels than a tile has to more than a chunk; B0's widths, and none that divide.
@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize(
    ("shape", "out_channels"),
    [((1, 1, 1, 1), 1), ((2, 3, 3, 5), 7), ((3, 40, 7, 7), 24), ((1, 16, 33, 35), 96), ((2, 65, 9, 40), 113)],
    ids=label,
)
def test_pointwise_conv(shape: tuple[int, int, int, int], out_channels: int, dtype: torch.dtype) -> None:
    check_parity(pointwise_conv_case(shape, out_channels=out_channels, dtype=dtype))


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_layouts_of_pointwise_conv(layout: str, parameters: str) -> None:
    """In NCHW it is PyTorch's convolution, which takes the weight in the dtype of the activations."""
    case = pointwise_conv_case((2, 24, 8, 5), layout=layout, parameters=parameters)
    check_parity(case)
    assert ("pointwise_conv" in operators_called(case)) == (layout == "channels_last")


SAMPLE = pairwise(
    {
        "shape": ((1, 8, 5, 9), (2, 17, 12, 7), (5, 24, 7, 7), (1, 3, 33, 30), (3, 40, 2, 3)),
        "expanded": (None, 19, 96, 144),
        "out_channels": (1, 16, 24, 49),
        "kernel": (3, 5, 7),
        "stride": (1, 2),
        "dtype": DTYPES,
        "parameters": PARAMETERS,
        "bn1": ("training", "frozen"),
        "bn2": ("training", "frozen"),
        "se": ("matrix", "convolution", None),
        "squeezed": (1, 6),
        "activation": ("relu", "relu6", "silu", "hardswish"),
        "gate": ("sigmoid", "hardsigmoid"),
        "affine": (True, False),
    },
    valid=lambda row: True,
)


@pytest.mark.parametrize("row", SAMPLE, ids=label)
def test_mbconv(row: Row) -> None:
    """Of another draw than the first, which leaves one row's gradient of the squeezing layer to cancellation.

    There PyTorch's own float32 gradient is ten times as far off as with any other draw.
    """
    check_parity(mbconv_case(**row, seed=1))


@pytest.mark.parametrize("row", SAMPLE[::4], ids=label)
def test_mbconv_without_gradient(row: Row) -> None:
    check_parity(mbconv_case(**row), gradient=False)


# Fewer rows than it takes to pack a weight for: read as it lies where its rows are whole vectors.
@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize("channels", [8, 16, 17, 48], ids=label)
def test_few_rows(channels: int, dtype: torch.dtype, parameters: str) -> None:
    for shape in ((5, channels, 1, 1), (1, channels, 2, 3)):
        check_parity(pointwise_conv_case(shape, out_channels=112, dtype=dtype, parameters=parameters))
        sizes = {"expanded": 96 if channels > 8 else 50, "out_channels": channels}
        check_parity(mbconv_case(shape, **sizes, dtype=dtype, parameters=parameters, bn1="frozen", bn2="frozen"))


@pytest.mark.parametrize("channels", [8, 48], ids=label)
def test_few_rows_of_which_some_gradients_are_wanted(channels: int) -> None:
    for case in (mbconv_case((3, channels, 2, 2), expanded=96), pointwise_conv_case((3, channels, 2, 2))):
        names = [name for name in ("x", "w_expand", "w_project", "w") if name in case.tensors]
        every = evaluate(case.call, case.tensors).gradients
        for name in names:
            tensors = {k: t.clone().requires_grad_(k == name) for k, t in case.tensors.items()}
            (gradient,) = torch.autograd.grad(weighted_sum(case.call(tensors)), tensors[name])
            assert torch.equal(gradient, every[name]), name


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a != "identity"])
@pytest.mark.parametrize("padding", [(0, 1, 0, 1), (1, 2, 2, 0)], ids=label)
def test_mbconv_on_several_chunks(padding: tuple[int, int, int, int], activation: str) -> None:
    case = mbconv_case((3, 12, 30, 27), expanded=72, kernel=5, stride=2, padding=padding, activation=activation)
    check_parity(case)
    assert {"mbconv", "mbconv_backward"} <= operators_called(case)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("gradient", [True, False])
def test_where_mbconv_is_one_operator(gradient: bool, layout: str) -> None:
    """Where there is a gradient to prepare for, in channels_last; elsewhere it is mbconv_core and two convolutions."""
    case = mbconv_case(layout=layout)
    check_parity(case, gradient=gradient)
    assert ("mbconv" in operators_called(case, gradient=gradient)) == (gradient and layout == "channels_last")


def test_statistics_of_a_large_mean() -> None:
    """BN1's statistics come out of the product itself, and are as good as those of a pass over u."""
    x = laid_out(torch.rand(4, 8, 30, 20, generator=torch.Generator().manual_seed(0)) * 2 + 1e3, "channels_last")
    case = mbconv_case((4, 8, 30, 20), momentum=1.0).with_tensors(x=x)
    u = F.conv2d(x, case.tensors["w_expand"])
    mean, var = torch.zeros(19), torch.ones(19)
    tensors = {**case.tensors, "mean1": mean, "var1": var, "x": x.requires_grad_()}
    case.call(tensors)
    u = u.detach().double()
    noise = EPS * u.abs().mean((0, 2, 3)) / u.std((0, 2, 3))
    assert_close(mean, u.mean((0, 2, 3)), 8 * EPS, "mean")
    assert_close(var, u.var((0, 2, 3)), 8 * float(noise.max()), "var")


@pytest.mark.parametrize("expanded", [19, None])
def test_empty_batch(expanded: int | None) -> None:
    for case in (mbconv_case((0, 8, 9, 7), expanded=expanded), pointwise_conv_case((0, 8, 9, 7))):
        result = evaluate(case.call, case.tensors)
        assert result.out.shape[0] == 0
        for name, g in result.gradients.items():
            assert torch.equal(g, torch.zeros_like(case.tensors[name])), f"gradient of {name}"
        for name, t in result.statistics.items():
            assert torch.equal(t, case.tensors[name]), name


def test_not_a_number_stays_in_its_pixel() -> None:
    case = pointwise_conv_case((2, 40, 5, 7))
    x = case.tensors["x"].clone(memory_format=torch.preserve_format)
    x[1, 3, 2, 4] = float("nan")
    case = case.with_tensors(x=x)
    out = evaluate(case.call, case.tensors, gradient=False).out
    assert torch.equal(out.isnan(), defined(case, gradient=False).out.isnan())
    assert int(out.isnan().sum()) == out.shape[1]


def test_bad_arguments_are_named() -> None:
    t = mbconv_case().tensors
    bn = ek.BatchNorm(t["gamma2"], t["beta2"], t["mean2"], t["var2"])
    with pytest.raises(ValueError, match="w_expand, bn1: expected both or neither"):
        ek.mbconv(t["x"], t["w"], t["w_project"], bn, w_expand=t["w_expand"])
    with pytest.raises(ValueError, match=r"w_expand: expected shape \(19, 8, 1, 1\), got \(19, 7, 1, 1\)"):
        ek.mbconv(t["x"], t["w"], t["w_project"], bn, w_expand=t["w_expand"][:, 1:], bn1=bn)
    with pytest.raises(ValueError, match=r"w_project: expected shape \(11, 8, 1, 1\), got \(11, 19, 1, 1\)"):
        ek.mbconv(t["x"], t["w"], t["w_project"], bn)
    with pytest.raises(ValueError, match=r"w: expected shape \(O, 8, 1, 1\)"):
        ek.pointwise_conv(t["x"], t["w_project"][0])
    with pytest.raises(TypeError, match="x: expected float32, float16, bfloat16 or float64"):
        ek.pointwise_conv(t["x"].long(), t["w_expand"])
