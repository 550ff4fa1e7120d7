"""Activation checkpointing around blocks: the same results, and statistics that move once per step."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from networks import BLOCKS, agree, images, small

EVERY = pytest.mark.parametrize("reentrant", [False, True], ids=("saved_tensor_hooks", "reentrant"))
FUSED = pytest.mark.parametrize("fused", [True, False], ids=("fused", "unfused"))


def train_a_step(model: nn.Module, reentrant: bool | None) -> dict[str, Tensor]:
    """The output, gradients and buffers of a step, with every block checkpointed where ``reentrant`` is not None."""
    for name in BLOCKS if reentrant is not None else ():
        block = model.get_submodule(name)

        def run(x: Tensor, forward: object = block.forward) -> Tensor:
            return checkpoint(forward, x, use_reentrant=reentrant)

        block.forward = run  # type: ignore[method-assign]
    x = images(dtype=torch.float64).requires_grad_()
    torch.manual_seed(3)
    out = model(x)
    out.square().sum().backward()
    gradients = {f"gradient of {name}": p.grad for name, p in [("x", x), *model.named_parameters()]}
    assert all(g is not None for g in gradients.values())
    return {"out": out, **gradients, **dict(model.named_buffers())}


@EVERY
@FUSED
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_step_is_the_same(momentum: float | None, fused: bool, reentrant: bool) -> None:
    """Drop-connect's draws and the running statistics included: a recomputation moves none."""
    results = []
    for how in (None, reentrant):
        model = small(fused=fused, dtype=torch.float64)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum
        results.append(train_a_step(model, how))
    for name, expected in results[0].items():
        agree(results[1][name], expected)
    assert {int(t) for name, t in results[1].items() if name.endswith("num_batches_tracked")} == {1}


@EVERY
def test_in_evaluation(reentrant: bool) -> None:
    plain, checkpointed = (train_a_step(small(dtype=torch.float64).eval(), how) for how in (None, reentrant))
    for name, expected in plain.items():
        agree(checkpointed[name], expected)
    for name, expected in small(dtype=torch.float64).named_buffers():
        assert torch.equal(checkpointed[name], expected), name


def test_within_a_compiled_network() -> None:
    torch._dynamo.reset()
    model, twin = small(drop_connect=0.0), small(drop_connect=0.0)
    stage = torch.compile(
        lambda x: checkpoint(model.stages[2], x, use_reentrant=False), fullgraph=True, backend="aot_eager"
    )
    x = torch.randn(2, 8, 6, 6)
    results = []
    for run in (stage, twin.stages[2]):
        leaf = x.clone().requires_grad_()
        run(leaf).square().sum().backward()
        results.append(leaf.grad)
    assert torch.equal(*results)
    for (name, t), expected in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(t, expected), name
    assert int(model.stages[2][0].project.bn.num_batches_tracked) == 1
