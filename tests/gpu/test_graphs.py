"""CUDA graphs: forward, and forward with backward, captured once and replayed on other values."""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch

from gpu.steps import eager, grad_like, leaves_of, refill, step
from operators.axes import LAYOUTS
from operators.cases import CASES, RUNNING_STATISTICS
from operators.parity import check_identical, evaluate
from operators.sampling import label

Result = TypeVar("Result")

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("batch_norm_act", {"keep": True, "residual": True}),
    ("batch_norm_act", {"training": False}),
    ("depthwise_conv_bn_act", {"kernel": 5, "stride": 2}),
    ("depthwise_conv_bn_act", {"training": False}),
    ("squeeze_excite", {}),
    ("mbconv_core", {"stride": 2}),
    ("mbconv_core", {"bn1": None, "se": None}),
    ("mbconv_core", {"bn1": "frozen", "bn2": "frozen"}),
]
SHAPE = (5, 41, 23, 22)
REPLAYS = 3


def captured(work: Callable[[], Result], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A graph of ``work``, and the result that its replays write to. Before, ``work`` runs as itself."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph, result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=label)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("operator", "options"), OPTIONS, ids=label)
def test_forward(operator: str, options: dict[str, Any], layout: str, dtype: torch.dtype, device: torch.device) -> None:
    cases = [
        CASES[operator](SHAPE, layout=layout, dtype=dtype, seed=seed, **options).on(device)
        for seed in range(REPLAYS + 1)
    ]
    static = {name: t.clone(memory_format=torch.preserve_format) for name, t in cases[0].tensors.items()}
    with torch.no_grad():
        graph, out = captured(lambda: cases[0].call(static), device)
    for case in cases[1:]:
        expected = evaluate(case.call, case.tensors, gradient=False)
        refill(static, case)
        graph.replay()
        assert torch.equal(out, expected.out)
        for name in RUNNING_STATISTICS:
            assert name not in static or torch.equal(static[name], expected.statistics[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=label)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("operator", "options"), OPTIONS, ids=label)
def test_forward_and_backward(
    operator: str, options: dict[str, Any], layout: str, dtype: torch.dtype, device: torch.device
) -> None:
    cases = [
        CASES[operator](SHAPE, layout=layout, dtype=dtype, seed=seed, **options).on(device)
        for seed in range(REPLAYS + 1)
    ]
    leaves = leaves_of(cases[0])
    grad = grad_like(evaluate(cases[0].call, cases[0].tensors, gradient=False).out)
    graph, result = captured(lambda: step(cases[0].call, leaves, grad), device)
    for seed, case in enumerate(cases[1:]):
        fresh = grad_like(grad, seed)
        expected = eager(case, fresh)
        refill(leaves, case)
        grad.copy_(fresh)
        graph.replay()
        check_identical(result, expected)
