"""Triton's operators beside the compiled ones: the same names and schemas, checked by ``opcheck``; and the backend."""

from pathlib import Path
from typing import Any

import pytest
import torch

import effnet_kernels as ek
from effnet_kernels.ops.registration import CPU_ONLY, TRITON_NAMESPACE
from operators.axes import LAYOUTS
from operators.cases import CASES
from operators.parity import evaluate
from operators.recording import Recorder, operators_of_the_namespace
from operators.sampling import label
from operators.test_opcheck import check
from processes import run_python

FROZEN = {"bn1": "frozen", "bn2": "frozen"}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("batch_norm_act", {"keep": True, "residual": True}),
    ("depthwise_conv_bn_act", {"stride": 2, "padding": (0, 1, 0, 1), "layout": "channels_last"}),
    ("squeeze_excite", {"weights": "convolution", "dtype": torch.half}),
    ("mbconv_core", {"layout": "channels_last"}),
    ("mbconv_core", FROZEN),
    ("depthwise_conv_bn_act", {"training": False}),
]


def schema(namespace: str, name: str) -> tuple[Any, ...]:
    """Names, types and mutations of the arguments, and the types of what is returned."""
    found = getattr(getattr(torch.ops, namespace), name).default._schema
    arguments = [(a.name, str(a.type), a.alias_info is not None and a.alias_info.is_write) for a in found.arguments]
    return arguments, [str(r.type) for r in found.returns]


def test_schemas_are_the_compiled_ones() -> None:
    names = operators_of_the_namespace() - CPU_ONLY
    assert names == operators_of_the_namespace(TRITON_NAMESPACE)
    for name in names:
        assert schema(TRITON_NAMESPACE, name) == schema("effnet_kernels", name), name


@pytest.mark.parametrize(("operator", "options"), OPTIONS, ids=label)
def test_opcheck(operator: str, options: dict[str, Any]) -> None:
    case = CASES[operator]((2, 3, 5, 4), **options)
    with Recorder(TRITON_NAMESPACE) as recorder:
        evaluate(case.call, case.tensors)
        evaluate(case.call, case.tensors, gradient=False)
    assert {operator, f"{operator}_backward"} <= {name for name, _ in recorder.calls}
    for name, arguments in dict(recorder.calls).items():
        check(name, arguments, differentiable=name == operator, namespace=TRITON_NAMESPACE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", CASES)
def test_float64_is_refused(operator: str, layout: str) -> None:
    case = CASES[operator](dtype=torch.float64, layout=layout)
    with pytest.raises(RuntimeError, match="backend 'triton' does not compute in float64"):
        evaluate(case.call, case.tensors)


def test_unscaled_output_and_scale() -> None:
    """The form of inference that leaves SE's scale to the caller."""
    t = CASES["mbconv_core"]((1, 24, 9, 7), **FROZEN).tensors
    bn1, bn2 = (ek.BatchNorm(*(t[f"{name}{n}"] for name in ("gamma", "beta", "mean", "var")), False) for n in "12")
    se = ek.SqueezeExcite(t["w1"], t["b1"], t["w2"], t["b2"])
    z, scale = ek.mbconv_core_unscaled(t["x"], t["w"], bn2, se, bn1=bn1)
    whole = ek.mbconv_core(t["x"], t["w"], bn2, bn1=bn1, se=se)
    assert torch.allclose(z * scale[:, :, None, None], whole, rtol=1e-6)


def test_without_interpreter_and_gpu_the_backend_says_why(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, on which Triton runs")
    result = run_python("import effnet_kernels", tmp_path, EFFNET_KERNELS_BACKEND="triton", TRITON_INTERPRET="0")
    assert result.returncode != 0
    reason = "torch sees no CUDA device; TRITON_INTERPRET=1 runs the kernels without one, slowly"
    assert f"EFFNET_KERNELS_BACKEND: backend 'triton' is not available: {reason}" in result.stderr


def test_auto_prefers_the_compiled_library_then_triton(tmp_path: Path) -> None:
    """With a device that is only said to be there."""
    code = """
import torch
torch.cuda.is_available = lambda: True
import effnet_kernels as ek
from effnet_kernels import backend
device = torch.device("cuda", 0)
answers = []
for library in (None, "it was not built"):
    backend._CUDA_LIBRARY_REASON = library
    ek.set_backend("auto")
    answers += [ek.backend_for(device), ek.backend_for(device, torch.float64)]
backend._triton_reason = lambda: "triton is not installed"
ek.set_backend("auto")
print(*answers, ek.backend_for(device))
"""
    result = run_python(code, tmp_path, TRITON_INTERPRET="1")
    assert result.stdout == "cuda reference triton reference reference\n", result.stderr


def test_autotuning_is_an_option(tmp_path: Path) -> None:
    """Chosen by the environment; tuned kernels restore what a trial run overwrites."""
    code = """
import effnet_kernels.triton
from effnet_kernels.triton import batch_norm_act, launch, squeeze_excite
tuned = launch.tuned(batch_norm_act.input_gradient)
print(launch.AUTOTUNE, tuned.restore_value, len(tuned.configs), "elements" in tuned.keys)
"""
    for value, expected in (("0", "False"), ("1", "True")):
        variables = {"EFFNET_KERNELS_TRITON_AUTOTUNE": value, "TRITON_INTERPRET": "0"}
        result = run_python(code, tmp_path, **variables)
        assert result.stdout == f"{expected} ['dx'] 3 True\n", result.stderr
