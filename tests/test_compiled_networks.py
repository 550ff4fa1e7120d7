"""``torch.compile`` of whole fused networks: one graph, any batch size, and no recompilation that changes nothing."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import effnet
from effnet.config import Stage
from networks import SMALL, agree, images, small
from tolerances import TOLERANCES, assert_close


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def no_recompilation() -> Any:
    """A ``with`` block in which what would be compiled again is an error."""
    return torch.compiler.set_stance("fail_on_recompile")


def quiet(**arguments: Any) -> Any:
    """The network without random numbers, which a compiler may draw in another order."""
    return small(**{"dropout": 0.0, "drop_connect": 0.0, **arguments})


def step(run: Any, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output, gradients and buffers of a step of ``run``, which is ``model`` or compiled from it."""
    out = run(x)
    gradients = torch.autograd.grad(out.square().sum(), list(model.parameters()))
    names = [f"gradient of {name}" for name, _ in model.named_parameters()]
    buffers = {name: t.clone() for name, t in model.named_buffers()}
    return {"out": out, **dict(zip(names, gradients, strict=True)), **buffers}


@pytest.mark.parametrize(
    ("marked", "training"), [(True, False), (False, True)], ids=("mark_dynamic-evaluation", "dynamic-training")
)
def test_any_batch_size_is_one_compilation(marked: bool, training: bool) -> None:
    """Bit for bit eager's outputs, gradients and buffers, at every size and at every step."""
    eager = quiet().train(training)
    compiled = copy.deepcopy(eager)
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager", dynamic=None if marked else True)

    def check(batch: int) -> None:
        x = images(batch)
        expected = step(eager, eager, x)
        if marked:
            torch._dynamo.mark_dynamic(x, 0)
        for name, t in step(run, compiled, x).items():
            assert torch.equal(t, expected[name]), name

    check(4)
    with no_recompilation():
        for batch in (2, 5, 7):
            check(batch)
    assert int(compiled.stem.bn.num_batches_tracked) == (4 if training else 0)


def test_without_gradients() -> None:
    model = small().eval()
    run = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    with torch.no_grad():
        run(images(4))
        with no_recompilation():
            for batch in (2, 5):
                assert_close(run(images(batch)), model(images(batch)), 2 * TOLERANCES[torch.float32].forward, "logits")


def test_momentum_none_counts_on() -> None:
    """The cumulative average needs the number of batches, which changes at every step, and no recompilation."""
    eager = quiet()
    for module in eager.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    compiled, unfused = copy.deepcopy(eager), copy.deepcopy(eager)
    unfused.fused = False
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for number in range(3):
        x = images(seed=number)
        eager(x), unfused(x)
        if number == 0:
            run(x)
        else:
            with no_recompilation():
                run(x)
    for name, t in compiled.state_dict().items():
        assert torch.equal(t, eager.state_dict()[name]), name
        assert_close(t, unfused.state_dict()[name], 2 * TOLERANCES[torch.float32].forward, name)


def test_a_graph_for_each_mode_and_value_and_no_more() -> None:
    """The process default, the network's own setting, training and evaluation: what was compiled is found again."""
    model, counter = small(fused=None), CompileCounter()
    run = torch.compile(model, fullgraph=True, backend=counter)

    def visit() -> None:
        for training in (True, False):
            model.train(training)
            for fused in (False, True):
                with effnet.use_fused(fused):
                    run(images())

    visit()
    assert counter.frame_count == 4
    with no_recompilation():
        visit()

    for fused in (False, True):
        model.fused = fused
        run(images())
    assert counter.frame_count == 6
    with no_recompilation():
        for own in (False, True, False, None):
            model.fused = own
            for fused in (True, False):
                with effnet.use_fused(fused):
                    run(images())


def test_a_network_with_a_setting_of_its_own_ignores_the_process_default() -> None:
    model = small(fused=True).eval()
    run = torch.compile(model, fullgraph=True, backend="eager")
    with effnet.use_fused(False):
        run(images())
    with no_recompilation():
        run(images())
        with effnet.use_fused(True):
            run(images())


def test_inductor() -> None:
    """A training step through the code generator, in channels_last."""
    variant = replace(SMALL, stages=(Stage("mbconv", 3, 2, 3, 8, 1),))
    eager = effnet.create_model(variant, features_only=True, fused=True).double()
    compiled = copy.deepcopy(eager)
    run = torch.compile(lambda x: compiled(x)[0], fullgraph=True)
    x = images(2, 16, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    expected = step(lambda x: eager(x)[0], eager, x)
    for name, t in step(run, compiled, x).items():
        agree(t.double(), expected[name].double())


def test_compiled_autograd_gives_the_same_gradients() -> None:
    """It looks into what an operator saved for its backward."""
    model, x = quiet().train(), images(2)
    expected = step(model, model, x)
    twin = quiet().train()
    loss = twin(x).square().sum()
    with torch._dynamo.compiled_autograd._enable(lambda graph: graph):
        loss.backward()
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, expected[f"gradient of {name}"]), name
