"""The operators of inference over prepared weights against their definition in float64."""

from typing import Any

import pytest
import torch

from effnet_kernels.activations import ACTIVATIONS, GATES
from effnet_kernels.arguments import same_padding
from operators.inference_cases import ConvCase, MBConvCase, check_every_path
from operators.sampling import label


def test_every_path() -> None:
    check_every_path()


@pytest.mark.parametrize("squeezed", [0, 1, 17])
@pytest.mark.parametrize("expands", [True, False], ids=["expand", "no expand"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_variants(kernel: int, stride: int, expands: bool, squeezed: int) -> None:
    options: dict[str, Any] = {"kernel": kernel, "stride": stride, "expands": expands, "squeezed": squeezed}
    MBConvCase(residual=stride == 1, **options).check()
    MBConvCase((1, 12, 10, 13), padding=same_padding(10, 13, kernel, stride), out_channels=33, **options).check()
    MBConvCase(padding=(0, kernel - 1, kernel - 1, 0), **options).check()


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (1, 17, 1, 9), (3, 16, 2, 1), (1, 5, 61, 3), (1, 3, 4, 200), (9, 7, 6, 5), (17, 12, 3, 3)],
    ids=label,
)
@pytest.mark.parametrize("expands", [True, False], ids=["expand", "no expand"])
def test_awkward_shapes(shape: tuple[int, int, int, int], expands: bool) -> None:
    MBConvCase(shape, channels=53, out_channels=shape[1], residual=True, kernel=5, expands=expands).check()


@pytest.mark.parametrize("channels", [1, 15, 16, 17, 48, 49, 64, 97, 240])
def test_channels_that_fill_no_vector(channels: int) -> None:
    MBConvCase((2, channels, 5, 8), channels=channels + 3, out_channels=channels, residual=True).check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=label)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_dtypes(activation: str, dtype: torch.dtype) -> None:
    for gate in GATES:
        MBConvCase(activation=activation, gate=gate, dtype=dtype, residual=True).check()
    ConvCase(activation=activation, dtype=dtype, residual=True).check()


def test_a_map_larger_than_the_scratch_rows() -> None:
    """Rows are expanded again and again into the same few; strides 1 and 2 leave different rows behind."""
    for kernel, stride in ((3, 1), (3, 2), (5, 1), (5, 2)):
        MBConvCase((1, 6, 45, 150), channels=50, kernel=kernel, stride=stride).check()
        MBConvCase((1, 50, 45, 150), kernel=kernel, stride=stride, expands=False).check()


def test_a_mean_that_is_large_beside_the_deviation() -> None:
    case = MBConvCase(mean=300.0)
    assert case.expand is not None
    pixels = case.expand.define(case.x.double(), "identity", 1, (0, 0, 0, 0))
    case.expand.bn = case.expand.bn._replace(mean=case.expand.bn.mean + pixels.mean((0, 2, 3)).float())
    reference = case.define(case.x)
    # The expansion's outputs are known to 300 float32 roundings, by whatever path they are computed.
    assert float((case.call(case.x) - reference).norm() / reference.norm()) < 300 * 1.2e-7 * 4


def test_nchw_input_and_an_empty_batch() -> None:
    MBConvCase(layout="nchw", residual=True).check()
    case = MBConvCase()
    assert case.call(case.x[:0]).shape == (0, 12, 9, 7)
    conv = ConvCase()
    assert conv.call(conv.x[:0]).shape == (0, 20, 9, 11)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (5, 2)])
def test_convolutions(kernel: int, stride: int, layout: str) -> None:
    for shape in ((1, 3, 17, 12), (3, 20, 7, 7), (2, 1, 5, 1)):
        ConvCase(shape, kernel=kernel, stride=stride, layout=layout, residual=True).check()
    ConvCase(
        (1, 19, 8, 9), kernel=kernel, stride=stride, layout=layout, padding=same_padding(8, 9, kernel, stride)
    ).check()
    ConvCase((2, 320, 7, 7), out_channels=130, kernel=kernel, stride=stride, layout=layout).check()


def test_a_convolution_reads_a_view_where_it_lies() -> None:
    for kernel in (1, 3):
        case = ConvCase((2, 6, 9, 11), kernel=kernel, out_channels=16)
        view = torch.randn(4, 9, 12, 30)[::2, 1:7, 2:11, 3:25:2]
        assert torch.equal(case.call(view), case.call(view.contiguous()))


@pytest.mark.parametrize("batch", [1, 3, 9])
def test_the_same_bits_for_any_number_of_threads_and_any_batch(batch: int) -> None:
    case = MBConvCase((9, 24, 30, 41), channels=144, out_channels=24, residual=True, kernel=5)
    small = MBConvCase((9, 192, 7, 7), channels=200, out_channels=320)
    conv = ConvCase((9, 3, 60, 80))
    for each in (case, small, conv):
        torch.set_num_threads(1)
        expected = each.call(each.x)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(each.call(each.x[:batch]), expected[:batch])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(value: float) -> None:
    for activation in ACTIVATIONS:
        case = MBConvCase((2, 12, 9, 7), activation=activation, squeezed=0)
        case.x[0, 3, 4, 5] = value
        out, expected = case.call(case.x), case.define(case.x)
        assert torch.equal(out[1].isfinite(), expected[1].isfinite())
        if value != value or activation in ("identity", "relu"):
            assert torch.equal(out.isfinite(), expected.isfinite())
        conv = ConvCase(activation=activation)
        conv.x[0, 1, 4, 5] = value
        assert torch.equal(conv.call(conv.x).isnan(), conv.define(conv.x).isnan())


def test_schemas_and_fakes() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        case = MBConvCase((1, 12, 10, 7), stride=2, dtype=dtype)
        p = case.prepare()
        arguments = (case.x, p.weights, *p.sizes, case.pads, p.activation, p.gate, p.expands, p.residual)
        arguments += (p.bfloat16_products,)
        torch.library.opcheck(torch.ops.effnet_kernels.mbconv_inference.default, arguments)
    conv = ConvCase(stride=2)
    from effnet_kernels.ops.prepared import PreparedConv

    c = PreparedConv.make(conv.layer.weight, conv.layer.bn, stride=2, activation="silu")
    arguments = (conv.x, c.weights, None, c.out_channels, c.kernel_size, c.stride, conv.pads, c.activation)
    arguments += (c.bfloat16_products,)
    torch.library.opcheck(torch.ops.effnet_kernels.conv_inference.default, arguments)


def test_weights_of_another_size_are_refused() -> None:
    case = MBConvCase()
    p = case.prepare()
    with pytest.raises(RuntimeError, match="weights: expected"):
        p.__call__(torch.randn(1, 13, 9, 7), case.pads)
    with pytest.raises(RuntimeError, match="float32, float16 or bfloat16"):
        p(case.x.double(), case.pads)
    conv = ConvCase()
    with pytest.raises(RuntimeError, match="weights: expected"):
        conv.call(torch.randn(1, 4, 9, 9))
