"""``torch.library.opcheck`` on every operator of the namespace, with the arguments that public functions give it."""

from typing import Any

import pytest
import torch
from torch import Tensor

import effnet_kernels as ek
from operators.cases import CASES, CPU_CASES, DIFFERENTIABLE, EVERY_CASE, Case
from operators.parity import evaluate
from operators.recording import NAMESPACE, PREPARED, Recorder, operators_of_the_namespace
from operators.sampling import label

FROZEN = {"training": False}
FROZEN_CORE = {"bn1": "frozen", "bn2": "frozen"}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("batch_norm_act", {}),
    ("batch_norm_act", {"keep": True, "residual": True, "layout": "channels_last"}),
    ("batch_norm_act", {"shape": (3, 1, 4, 4), "layout": "channels_last"}),
    ("batch_norm_act", {"shape": (3, 8, 1, 1), "layout": "channels_last"}),
    ("batch_norm_act", FROZEN),
    ("depthwise_conv_bn_act", {"stride": 2, "padding": (0, 1, 0, 1)}),
    ("depthwise_conv_bn_act", {"kernel": 5, "layout": "channels_last", "dtype": torch.bfloat16}),
    ("depthwise_conv_bn_act", {"shape": (3, 1, 4, 4), "layout": "channels_last"}),
    ("depthwise_conv_bn_act", {"shape": (3, 8, 2, 2), "stride": 2, "layout": "channels_last", **FROZEN}),
    ("squeeze_excite", {}),
    (
        "squeeze_excite",
        {"layout": "channels_last", "weights": "convolution", "parameters": "same", "dtype": torch.half},
    ),
    ("squeeze_excite", {"shape": (3, 8, 1, 1), "layout": "channels_last"}),
    ("mbconv_core", {"layout": "channels_last"}),
    ("mbconv_core", {"stride": 2, "se": "convolution", "bn1": "frozen"}),
    ("mbconv_core", {"bn1": None, "se": None, "dtype": torch.bfloat16, "parameters": "same"}),
    ("mbconv_core", {"bn2": "frozen", "se": None, "dtype": torch.float64}),
    ("mbconv_core", FROZEN_CORE),
    ("mbconv_core", {"bn1": None, "bn2": "frozen", "shape": (3, 1, 4, 4), "layout": "channels_last"}),
]
CPU_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("pointwise_conv", {}),
    ("pointwise_conv", {"dtype": torch.bfloat16, "parameters": "same"}),
    ("mbconv", {}),
    ("mbconv", {"expanded": None, "se": None, "stride": 2}),
    ("mbconv", {"bn1": "frozen", "bn2": "frozen", "dtype": torch.half}),
]


def recorded(case: Case) -> list[tuple[str, tuple[Any, ...]]]:
    """The compiled operators that ``case`` calls, in training, backward and without a gradient."""
    with Recorder() as recorder:
        evaluate(case.call, case.tensors)
        evaluate(case.call, case.tensors, gradient=False)
    return recorder.calls


def check(name: str, arguments: tuple[Any, ...], differentiable: bool, namespace: str = NAMESPACE) -> None:
    """opcheck on copies of ``arguments``; the parameters' copies need a gradient where there is one."""

    def copied(argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        return argument.detach().clone().requires_grad_(differentiable and argument.requires_grad)

    operator = getattr(getattr(torch.ops, namespace), name).default
    torch.library.opcheck(operator, tuple(copied(argument) for argument in arguments))


def check_every_call(case: Case) -> None:
    calls = recorded(case)
    assert {case.name, f"{case.name}_backward"} <= {name for name, _ in calls}
    for name, arguments in calls:
        check(name, arguments, differentiable=name == case.name)


@pytest.mark.parametrize(("operator", "options"), OPTIONS, ids=label)
def test_opcheck(operator: str, options: dict[str, Any]) -> None:
    check_every_call(CASES[operator](**options))


@pytest.mark.parametrize(("operator", "options"), CPU_OPTIONS, ids=label)
def test_opcheck_on_cpu(operator: str, options: dict[str, Any]) -> None:
    check_every_call(CPU_CASES[operator](**options))


def test_every_operator_is_checked() -> None:
    """The options above reach everything that the schemas define."""
    reached = {
        name for operator, options in OPTIONS + CPU_OPTIONS for name, _ in recorded(EVERY_CASE[operator](**options))
    }
    # The last takes no tensor.
    assert reached | PREPARED == operators_of_the_namespace() - {"release_cached_memory"}


@pytest.mark.parametrize("operator", EVERY_CASE)
def test_meta_tensors_run(operator: str) -> None:
    """Shapes and dtypes without any data, as model summaries ask for them; the reference serves them."""
    options = {} if operator in ("squeeze_excite", "pointwise_conv") else {"statistics": False}
    case = EVERY_CASE[operator]((2, 8, 9, 7), layout="channels_last", **options)
    real = evaluate(case.call, case.tensors)
    ek.set_backend("auto")
    meta = {name: t.detach().to("meta").requires_grad_(name in DIFFERENTIABLE) for name, t in case.tensors.items()}
    out = case.call(meta)
    assert out.device.type == "meta" and out.shape == real.out.shape and out.dtype == real.out.dtype
