"""ONNX files of fused networks: standard operators alone, written without being asked to, with the network's logits."""

import io
import warnings
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import effnet_kernels as ek
from networks import images, small
from tolerances import TOLERANCES, assert_close

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


def written(model: nn.Module, dynamo: bool) -> bytes:
    """The file, for any number of images."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(model, (images(),), file, dynamo=True, dynamic_shapes=shapes, verbose=False)
        else:
            axes = {"x": {0: "batch"}}
            torch.onnx.export(model, (images(),), file, dynamo=False, dynamic_axes=axes, input_names=["x"])
    return file.getvalue()


def logits(file: bytes, x: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    outputs: list[numpy.ndarray[Any, Any]] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(outputs[0])


@pytest.mark.parametrize("dynamo", [True, False], ids=("dynamo", "torchscript"))
def test_standard_operators_and_the_same_logits(dynamo: bool) -> None:
    if dynamo:
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model = small().eval()
    with torch.no_grad():
        model(images())
    file = written(model, dynamo)
    proto = onnx.load_from_string(file)
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"} and not proto.functions
    assert "Conv" in {node.op_type for node in proto.graph.node}
    onnx.checker.check_model(proto)
    for batch in (1, 3, 5):
        x = images(batch)
        with torch.no_grad():
            assert_close(logits(file, x), model(x), 2 * TOLERANCES[torch.float32].forward, f"{batch} images")
    assert not torch.onnx.is_in_onnx_export() and ek.backend_for(torch.device("cpu")) != "reference"


def test_a_chosen_backend_is_not_left_silently() -> None:
    """The exporter wraps the error; what it was is in its text or its causes."""
    ek.set_backend("cpu")
    try:
        with pytest.raises(Exception, match="'cpu' does not serve an ONNX export"):
            written(small().eval(), dynamo=False)
    finally:
        ek.set_backend("auto")
