"""``torch.compile`` and ``torch.export``: one graph, the same results, and no recompilation for every batch size."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from effnet_kernels.nn import BatchNormAct2d, DepthwiseConvBNAct2d, SqueezeExcite2d, mbconv_core
from operators.cases import EVERY_CASE, Case
from operators.parity import check_identical, evaluate
from operators.sampling import label
from tolerances import TOLERANCES, assert_close

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("batch_norm_act", {"keep": True, "residual": True}),
    ("batch_norm_act", {"training": False, "layout": "channels_last"}),
    ("depthwise_conv_bn_act", {"stride": 2, "padding": (0, 1, 0, 1), "layout": "channels_last"}),
    ("depthwise_conv_bn_act", {"kernel": 5, "training": False}),
    ("squeeze_excite", {"weights": "convolution"}),
    ("squeeze_excite", {"layout": "channels_last", "dtype": torch.bfloat16}),
    ("mbconv_core", {"layout": "channels_last", "dtype": torch.bfloat16}),
    ("mbconv_core", {"stride": 2, "bn1": None, "se": None}),
    ("mbconv_core", {"bn1": "frozen", "bn2": "frozen"}),
]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("gradient", [True, False], ids=("gradient", "no_gradient"))
@pytest.mark.parametrize(("operator", "options"), OPTIONS, ids=label)
def test_compiled_equals_eager(operator: str, options: dict[str, Any], gradient: bool) -> None:
    """Bit for bit: the operators are the same, and what is around them only lays memory out."""
    case = EVERY_CASE[operator](**options)
    compiled = torch.compile(case.call, fullgraph=True, backend="aot_eager")
    actual = evaluate(compiled, case.tensors, gradient=gradient)
    check_identical(actual, evaluate(case.call, case.tensors, gradient=gradient))


@pytest.mark.parametrize("operator", EVERY_CASE)
def test_inductor(operator: str) -> None:
    case = EVERY_CASE[operator]((2, 8, 9, 7), layout="channels_last")
    compiled = torch.compile(case.call, fullgraph=True)
    actual, expected = evaluate(compiled, case.tensors), evaluate(case.call, case.tensors)
    for name, t in expected.tensors().items():
        assert_close(actual.tensors()[name], t, TOLERANCES[torch.float32].forward, name)


@pytest.mark.parametrize("operator", EVERY_CASE)
def test_any_batch_size_is_one_graph(operator: str) -> None:
    """After the second batch size the graph is dynamic; more sizes compile nothing more."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(EVERY_CASE[operator]().call, fullgraph=True, backend=counter)
    for batch in (4, 2, 3, 5, 7, 6):
        case = EVERY_CASE[operator]((batch, 8, 9, 7))
        check_identical(evaluate(compiled, case.tensors), evaluate(case.call, case.tensors))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("operator", EVERY_CASE)
def test_any_image_size_is_one_graph(operator: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(EVERY_CASE[operator]().call, fullgraph=True, backend=counter, dynamic=True)
    for height, width in ((9, 7), (12, 5), (6, 16), (31, 8)):
        case = EVERY_CASE[operator]((2, 8, height, width))
        check_identical(evaluate(compiled, case.tensors), evaluate(case.call, case.tensors))
    assert counter.frame_count <= 2


class Block(nn.Module):
    """An MBConv block of every operator: projection left out, a skip with drop-connect's scale kept."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.se = SqueezeExcite2d(channels, 2)
        self.bn3 = BatchNormAct2d(channels, activation="identity")
        self.depthwise = DepthwiseConvBNAct2d(channels, 5, stride=2)
        self.excite = SqueezeExcite2d(channels, 2, gate="hardsigmoid")

    def forward(self, x: Tensor) -> Tensor:
        z = mbconv_core(x, self.conv, self.bn2, bn1=self.bn1, se=self.se, padding=1, activation="silu", fused=True)
        z = self.bn3(z, residual=x)
        return self.excite(self.depthwise(z))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=label)
def test_export(layout: torch.memory_format) -> None:
    """The exported program holds the operators, takes any batch size, and gives the module's bits."""
    torch.manual_seed(0)
    block = Block().eval()

    def images(batch: int) -> Tensor:
        return torch.randn(batch, 8, 9, 7).contiguous(memory_format=layout)

    with torch.no_grad():
        program = torch.export.export(block, (images(3),), dynamic_shapes=({0: torch.export.Dim("batch")},))
        names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        for operator in ("mbconv_core_inference", "batch_norm_act", "squeeze_excite"):
            assert f"effnet_kernels.{operator}.default" in names
        for batch in (3, 1, 5):
            x = images(batch)
            assert torch.equal(program.module()(x), block(x))


def test_a_training_step_of_a_module() -> None:
    """Two steps of a compiled module leave the gradients and the buffers of two steps in eager."""
    torch.manual_seed(0)
    eager, compiled = Block(), Block()
    compiled.load_state_dict(eager.state_dict())
    step = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = torch.randn(3, 8, 9, 7)
        step(x).square().sum().backward()
        eager(x).square().sum().backward()
    assert int(compiled.bn1.num_batches_tracked) == 2
    for (name, actual), expected in zip(compiled.state_dict().items(), eager.state_dict().values(), strict=True):
        assert torch.equal(actual, expected), name
    for (name, actual), expected in zip(compiled.named_parameters(), eager.parameters(), strict=True):
        assert actual.grad is not None and expected.grad is not None
        assert torch.equal(actual.grad, expected.grad), name


def test_channels_last_survives_compilation() -> None:
    case: Case = EVERY_CASE["mbconv_core"](layout="channels_last", stride=2)
    out = torch.compile(case.call, fullgraph=True, backend="aot_eager")(case.tensors)
    assert out.is_contiguous(memory_format=torch.channels_last) and not out.is_contiguous()
