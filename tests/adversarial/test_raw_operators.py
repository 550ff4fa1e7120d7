"""The compiled operators called as ``torch.ops.effnet_kernels.*``: their own checks hold without those in Python.

What a public call passes to them, forward and backward, is recorded, and one or two arguments are changed.
"""

from typing import Any

import pytest
import torch
from hypothesis import assume, given, note
from hypothesis import strategies as st
from torch import Tensor

from adversarial.strategies import OPERATORS, TENSOR_CHANGES, Good, _changed, good_calls
from adversarial.test_operators import REFUSALS, same_bits
from operators.recording import PREPARED, Recorder, operators_of_the_namespace

NUMBERS = (-1, 0, 1, 2, 3, 5, 2**31, 2**62, -(2**63), 2**70, 0.5, float("nan"), float("inf"), None, True, "1", [1])
PADDINGS = ((), (1, 1), (1, 1, 1, 1, 1), (-1, 1, 1, 1), (0, 2, 0, 2), (2**62,) * 4, (0, 0, 0, 0), None)

SHAPE_FUNCTIONS = (AttributeError, IndexError)
"""What may come of arguments that only the compiler's own would fit."""

Recorded = tuple[str, tuple[Any, ...]]


def recorded_calls(good: Good) -> list[Recorded]:
    """Every compiled operator that a call and its gradient go through."""
    arguments = good.arguments()
    gradient = good.gradient and good.operator != "mbconv_core_unscaled"
    with Recorder() as recorder, torch.set_grad_enabled(gradient):
        out = OPERATORS[good.operator].call(arguments)
        first = out[0] if isinstance(out, tuple) else out
        if first.requires_grad:
            first.sum().backward()
    return [(name, tuple(a.detach() if isinstance(a, Tensor) else a for a in args)) for name, args in recorder.calls]


def changes_of(value: Any) -> st.SearchStrategy[Any]:
    if isinstance(value, Tensor):
        return st.sampled_from(tuple(TENSOR_CHANGES)).map(lambda change: _changed(value, change))
    if isinstance(value, (list, tuple)):
        return st.sampled_from(PADDINGS)
    if value is None:
        return st.sampled_from((torch.zeros(8), torch.zeros(0), torch.zeros(16, 8), torch.tensor(1.0)))
    return st.sampled_from(NUMBERS)


def copies(arguments: tuple[Any, ...]) -> list[Tensor | None]:
    return [a.clone() if isinstance(a, Tensor) and a.device.type == "cpu" and not a.is_nested else None
            for a in arguments]  # fmt: skip


def call(name: str, arguments: tuple[Any, ...]) -> bool:
    """Whether the operator took ``arguments``; one that did not names what is wrong and changed nothing."""
    operator = getattr(torch.ops.effnet_kernels, name).default
    before = copies(arguments)
    # A tensor without memory goes to the shape functions, which are Python's and serve the compiler alone.
    meta = any(isinstance(a, Tensor) and a.is_meta for a in arguments)
    try:
        operator(*arguments)
    except REFUSALS + SHAPE_FUNCTIONS as error:
        if meta:
            return False
        if not isinstance(error, REFUSALS):
            raise
        message = str(error)
        note(f"{name}: {type(error).__name__}: {message}")
        # A tensor of a kind that no kernel is registered for is refused by PyTorch, which names the operator.
        names = [*(argument.name for argument in operator._schema.arguments), f"effnet_kernels::{name}", "input"]
        assert any(known in message for known in names), message
        for argument, copy in zip(arguments, before, strict=True):
            assert copy is None or same_bits(argument, copy), f"{name} changed an argument of a call that it refused"
        return False
    return True


@given(st.data())
def test_bad_arguments(data: st.DataObject) -> None:
    calls = recorded_calls(data.draw(good_calls(), "call"))
    assume(calls)  # PyTorch's convolution serves NCHW
    name, arguments = calls[data.draw(st.integers(0, len(calls) - 1), "operator")]
    places = data.draw(st.lists(st.integers(0, len(arguments) - 1), min_size=1, max_size=2, unique=True), "places")
    arguments = tuple(data.draw(changes_of(a), "change") if place in places else a for place, a in enumerate(arguments))
    call(name, arguments)


def examples() -> list[Recorded]:
    """One call of every compiled operator, in training and in inference."""
    found: dict[str, Recorded] = {}
    for operator in OPERATORS:
        for training in (True, False):
            for gradient in (True, False):
                good = Good(operator, (2, 8, 5, 7), torch.float32, "channels_last", (training, training), True, True,
                            "silu", "sigmoid", 3, 1, True, True, gradient)  # fmt: skip
                for name, arguments in recorded_calls(good):
                    found.setdefault(name, (name, arguments))
    return list(found.values())


def test_every_operator_is_tried() -> None:
    assert {name for name, _ in examples()} == operators_of_the_namespace() - PREPARED - {"release_cached_memory"}


@pytest.mark.parametrize("wrong", ["longer", "one value", "int64", "empty"])
def test_every_tensor_is_checked(wrong: str) -> None:
    """Of each tensor of each operator alone: of a wrong size or dtype it is refused by name."""
    for name, arguments in examples():
        schema = getattr(torch.ops.effnet_kernels, name).default._schema.arguments
        for place, value in enumerate(arguments):
            if not isinstance(value, Tensor) or value.numel() == 0:
                continue
            # Any size of x may be right, and so may any number of a 1×1 convolution's outputs.
            free = schema[place].name in ("x", "u", "w_expand", "w_project") or name == "pointwise_conv"
            if free and wrong != "int64":
                continue
            changed = (*arguments[:place], _changed(value, wrong), *arguments[place + 1 :])
            # What is compared with the one that is wrong may be refused in its place.
            leads = place == 0 or schema[place].name in ("x", "u", "w", "w1", "mean")
            with pytest.raises(RuntimeError, match=r"\w+: " if leads else rf"{schema[place].name.rstrip('12')}\d?\b"):
                getattr(torch.ops.effnet_kernels, name)(*changed)


@pytest.mark.parametrize(
    "missing", ["mean", "var", "beta", "mean1", "var1", "beta1", "var2", "b1", "w2", "b2", "hidden", "a5"]
)
def test_groups_are_whole_or_absent(missing: str) -> None:
    """One tensor of a group left out is not read."""
    refused = 0
    for name, arguments in examples():
        schema = getattr(torch.ops.effnet_kernels, name).default._schema.arguments
        for place, value in enumerate(arguments):
            if schema[place].name == missing and isinstance(value, Tensor):
                with pytest.raises(RuntimeError, match=missing):
                    getattr(torch.ops.effnet_kernels, name)(*arguments[:place], None, *arguments[place + 1 :])
                refused += 1
    assert refused


@pytest.mark.parametrize("code", [-1, 5, 7, 2**32 + 5, 2**40])
def test_unknown_codes_are_refused(code: int) -> None:
    """Activations and gates by number: no other than those of csrc/common/activation.h."""
    refused = 0
    for name, arguments in examples():
        schema = getattr(torch.ops.effnet_kernels, name).default._schema.arguments
        for place in range(len(arguments)):
            if schema[place].name not in ("activation", "gate") or (schema[place].name, code) == ("gate", 5):
                continue
            with pytest.raises(RuntimeError, match=f"{schema[place].name}: expected"):
                getattr(torch.ops.effnet_kernels, name)(*arguments[:place], code, *arguments[place + 1 :])
            refused += 1
    assert refused >= 4


def test_running_statistics_move_together_or_not_at_all() -> None:
    mean, var, batch = torch.zeros(8), torch.ones(8), torch.full((8,), 3.0)
    update = torch.ops.effnet_kernels.update_running_stats_
    for bad in (torch.ones(7), torch.ones(1).expand(8), torch.ones(8).long(), torch.ones(0)):
        with pytest.raises(RuntimeError, match="running_var: expected"):
            update(mean, bad, batch, batch, 4, 0.5)
        with pytest.raises(RuntimeError, match="running_mean: expected"):
            update(bad, var, batch, batch, 4, 0.5)
        with pytest.raises(RuntimeError, match="var: expected"):
            update(mean, var, batch, batch[:7], 4, 0.5)
    assert torch.equal(mean, torch.zeros(8)) and torch.equal(var, torch.ones(8))
    update(mean, var, batch, batch, 4, 0.5)
    assert torch.equal(mean, torch.full((8,), 1.5)) and torch.equal(var, torch.full((8,), 2.5))


def test_an_output_beyond_memory_is_refused() -> None:
    """A weight that is expanded to more channels than there are bytes, whose product with the rest wraps around."""
    x = torch.zeros(1, 1, 4, 4).contiguous(memory_format=torch.channels_last)
    for channels in (2**40, 2**58 + 2**20, 2**60):
        with pytest.raises((RuntimeError, MemoryError)):
            torch.ops.effnet_kernels.pointwise_conv(x, torch.zeros(1, 1, 1, 1).expand(channels, 1, 1, 1))
