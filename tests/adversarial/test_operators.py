"""The public operators with one or two bad arguments: PyTorch's result, or an error that names the argument.

No call may crash, and one that is refused leaves the running statistics as they were.
"""

import re
from typing import Any

import pytest
import torch
from hypothesis import given, note
from hypothesis import strategies as st
from torch import Tensor

from adversarial.strategies import (
    OPERATORS,
    Arguments,
    Change,
    Good,
    changed,
    changes_of,
    good_calls,
)
from operators.cases import RUNNING_STATISTICS
from tolerances import TOLERANCES, assert_close

REFUSALS = (TypeError, ValueError, RuntimeError)


def statistics_of(arguments: Arguments) -> dict[str, Tensor]:
    """Copies of the running statistics that hold values."""
    return {
        name: t.detach().clone()
        for name in RUNNING_STATISTICS
        if isinstance(t := arguments.get(name), Tensor) and t.device.type == "cpu" and not t.is_nested
    }


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    actual, expected = (t.to_dense() if t.layout != torch.strided else t for t in (actual.detach(), expected))
    if actual.is_quantized:
        actual, expected = actual.int_repr(), expected.int_repr()
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (actual, expected)))


def in_float64(arguments: Arguments) -> Arguments:
    return {
        name: t.detach().double().clone(memory_format=torch.contiguous_format) if isinstance(t, Tensor) else t
        for name, t in arguments.items()
    }


def names_an_argument(good: Good, message: str) -> bool:
    """Whether ``message`` begins with what is wrong."""
    known = {*good.arguments(), *OPERATORS[good.operator].names, "mean", "var", "training", "w_expand", "u", "x"}
    known |= {"mean1", "mean2", "var1", "var2"}
    head = re.match(r"(\w+(?:, \w+)*): ", message)
    return head is not None and set(head[1].split(", ")) <= known


def assert_same(actual: Tensor, expected: Tensor, bound: float, what: str) -> None:
    """Infinite and not a number where the definition is, and close elsewhere."""
    expected = expected.to(actual.dtype)
    assert actual.shape == expected.shape, what
    assert torch.equal(actual.isnan(), expected.isnan()), f"{what}: NaN elsewhere"
    infinite = expected.isinf()
    assert torch.equal(actual[infinite], expected[infinite]), f"{what}: infinities"
    finite = expected.isfinite()
    assert_close(actual[finite], expected[finite], bound, what)


def check_result(good: Good, arguments: Arguments, before: dict[str, Tensor], out: Any) -> None:
    """``out`` and the running statistics are what the definition makes of the same arguments in float64."""
    expected_arguments = in_float64(arguments)
    for name, t in before.items():
        expected_arguments[name] = t.double()
    expected = OPERATORS[good.operator].define(expected_arguments)
    x = arguments["u" if "u" in arguments else "x"]
    bound = TOLERANCES[x.dtype].forward
    results = zip(*((r if isinstance(r, tuple) else (r,)) for r in (out, expected)), strict=True)
    for number, (actual, defined) in enumerate(results):
        assert_same(actual.detach(), defined, bound, f"out {number}")
    for name in before:
        # Of a channel that holds an infinity, PyTorch's mean is infinite or NaN, as the sum was split.
        actual, defined = arguments[name].detach(), expected_arguments[name].to(arguments[name].dtype)
        finite = defined.isfinite()
        assert torch.equal(actual.isfinite(), finite), name
        assert_close(actual[finite], defined[finite], max(bound, TOLERANCES[actual.dtype].forward), name)


def check_gradients(arguments: Arguments, out: Any) -> None:
    """Every gradient that is asked for comes, in its tensor's shape and dtype."""
    first = out[0] if isinstance(out, tuple) else out
    if not first.requires_grad:
        return
    leaves = {name: t for name, t in arguments.items() if isinstance(t, Tensor) and t.requires_grad}
    gradients = torch.autograd.grad(first.sum(), list(leaves.values()), allow_unused=True)
    for (name, t), g in zip(leaves.items(), gradients, strict=True):
        assert g is None or (g.shape == t.shape and g.dtype == t.dtype), name


def check_call(good: Good, changes: list[Change]) -> bool:
    """Whether the call was accepted."""
    arguments = changed(good.arguments(), changes)
    before = statistics_of(arguments)
    gradient = good.gradient and good.operator != "mbconv_core_unscaled"
    try:
        with torch.set_grad_enabled(gradient):
            out = OPERATORS[good.operator].call(arguments)
    except REFUSALS as error:
        refusal = f"{type(error).__name__}: {error}"
        note(refusal)
    else:
        refusal = ""
    if refusal:
        assert names_an_argument(good, refusal.partition(": ")[2]), f"does not name the argument: {refusal}"
        for name, t in before.items():
            assert same_bits(arguments[name], t), f"{name} was updated by a call that was refused"
        return False
    if len(changes) < 2:
        check_result(good, arguments, before, out)
    check_gradients(arguments, out)
    return True


@given(st.data())
def test_bad_arguments(data: st.DataObject) -> None:
    good = data.draw(good_calls(), "call")
    check_call(good, data.draw(changes_of(good), "changes"))


@given(good=good_calls())
def test_good_arguments_are_accepted(good: Good) -> None:
    """Without which the test above would show nothing."""
    assert check_call(good, [])


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_argument_can_be_refused(operator: str) -> None:
    """Each tensor as a number, on another device, sparse and of a wrong shape: refused by its own name."""
    good = Good(operator, (2, 8, 5, 7), torch.float32, "channels_last", (True, True), True, True, "silu", "sigmoid", 3,
                1, True, True, True)  # fmt: skip
    for name, value in good.arguments().items():
        if not isinstance(value, Tensor):
            continue
        for change in ("number", "meta", "sparse", "int64", "one dimension more"):
            arguments = changed(good.arguments(), [(name, change)])
            with pytest.raises((TypeError, ValueError)) as caught:
                OPERATORS[operator].call(arguments)
            if change != "meta":  # another device than that of x is said of the tensor that is compared first
                assert str(caught.value).startswith(f"{name}: "), change
