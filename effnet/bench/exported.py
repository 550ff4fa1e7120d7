"""ONNX Runtime and OpenVINO, which run the network that torch.onnx exports, in inference on the CPU."""

import contextlib
import importlib.util
import io
import logging
import warnings
from typing import Any

import torch

from effnet.bench.problem import Outcome, Problem
from effnet.bench.sides import Runner

_EXPORT_NEEDS = ("onnx", "onnxscript")


def exported(problem: Problem) -> bytes:
    """The definition in float32 as an ONNX file, for the case's batch and size; kept with ``problem``."""
    found: bytes | None = problem.__dict__.get("onnx")
    if found is None:
        found = problem.__dict__["onnx"] = _export(problem)
    return found


def _export(problem: Problem) -> bytes:
    module = problem.copy().eval()
    inputs = tuple(t.float() for t in problem.inputs)
    # The exporter reports its progress on every stream there is.
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), warnings.catch_warnings(), _quiet_logs("torch.onnx"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, inputs, dynamo=True, verbose=False)
    assert program is not None
    model: bytes = program.model_proto.SerializeToString()
    return model


@contextlib.contextmanager
def _quiet_logs(name: str) -> Any:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class _ExportedSide:
    family = ""
    layout = "nchw"
    package = ""

    @property
    def name(self) -> str:
        return self.family

    def missing(self, problem: Problem) -> str | None:
        if problem.case.training:
            return "inference only"
        if problem.device.type != "cpu":
            return "compared on the CPU only"
        for package in (self.package, *_EXPORT_NEEDS):
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed: pip install 'effnet-kernels[bench]'"
        return None


class OnnxRuntime(_ExportedSide):
    """ONNX Runtime's CPU provider with all graph optimisations."""

    family = "onnxruntime"
    package = "onnxruntime"

    def missing(self, problem: Problem) -> str | None:
        if problem.case.dtype != "float32":
            return "its CPU provider does not compute in bfloat16"
        return super().missing(problem)

    def build(self, problem: Problem) -> Runner:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = problem.case.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Its threads may spin within a call, but not into the next side's.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(exported(problem), options, providers=["CPUExecutionProvider"])
        arrays = [t.float().numpy() for t in problem.inputs]
        feed = {node.name: array for node, array in zip(session.get_inputs(), arrays, strict=True)}
        return _ExportedRunner(lambda: session.run(None, feed)[0])


class OpenVino(_ExportedSide):
    """OpenVINO's CPU plugin, for latency, in the case's precision and no lower."""

    family = "openvino"
    package = "openvino"

    def build(self, problem: Problem) -> Runner:
        import openvino

        core = openvino.Core()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": str(problem.case.threads),
            "INFERENCE_PRECISION_HINT": "f32" if problem.case.dtype == "float32" else "bf16",
        }
        request = core.compile_model(core.read_model(exported(problem)), "CPU", settings).create_infer_request()
        arrays = [t.float().numpy() for t in problem.inputs]
        return _ExportedRunner(lambda: request.infer(arrays, share_inputs=True, share_outputs=True)[0])


class _ExportedRunner:
    """A call of another runtime on arrays."""

    def __init__(self, call: Any) -> None:
        self.step = call

    def activate(self) -> None:
        pass

    def outcome(self) -> Outcome:
        # A copy: a runtime may hand out its own memory.
        return {"out": torch.tensor(self.step())}
