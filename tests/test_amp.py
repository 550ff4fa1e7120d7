"""Autocast and ``GradScaler`` on whole fused networks: dtypes and values as unfused, gradients in float32."""

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from networks import images, small
from operators.sampling import label
from tolerances import TOLERANCES, relative_error

HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=label)


def outputs_and_gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    leaf = x.clone().requires_grad_()
    out = model(leaf)
    (out.double() if x.dtype == torch.float64 else out.float()).square().sum().backward()
    return {"out": out.detach(), "x": leaf.grad, **{name: p.grad for name, p in model.named_parameters()}}  # type: ignore[dict-item]


def joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.double().flatten() for t in tensors])


@HALF
@pytest.mark.parametrize("training", [True, False], ids=("training", "evaluation"))
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=("nchw", "channels_last"))
def test_networks_under_autocast(layout: torch.memory_format, training: bool, dtype: torch.dtype) -> None:
    """As far from float64 as the unfused network is, or nearer, and the table's bound at the most besides."""
    results = {}
    x = images(8, 32).contiguous(memory_format=layout)
    for fused in (True, False):
        model = small(fused=fused, dropout=0.0, drop_connect=0.0).train(training)
        with torch.autocast("cpu", dtype):
            results[fused] = outputs_and_gradients(model, x)
        assert all(t.dtype == torch.float32 for t in model.buffers() if t.is_floating_point())
    exact_model = small(fused=False, dropout=0.0, drop_connect=0.0, dtype=torch.float64).train(training)
    exact = outputs_and_gradients(exact_model, x.double())
    for name, t in results[False].items():
        assert results[True][name].dtype == t.dtype == (dtype if name == "out" else torch.float32), name
    bounds = TOLERANCES[dtype]
    allowed = bounds.forward + relative_error(results[False]["out"], exact["out"])
    assert relative_error(results[True]["out"], exact["out"]) <= allowed
    gradients = {
        key: joined([r[name] for name in exact if name != "out"]) for key, r in (*results.items(), (None, exact))
    }
    allowed = bounds.gradient + relative_error(gradients[False], gradients[None])
    assert relative_error(gradients[True], gradients[None]) <= allowed


@HALF
def test_inference_under_autocast(dtype: torch.dtype) -> None:
    """Without gradients, where weights are prepared: the dtype and the values that the unfused network gives."""
    fused, unfused = small().eval(), small(fused=False).eval()
    x = images()
    with torch.no_grad(), torch.autocast("cpu", dtype):
        out, expected = fused(x), unfused(x)
    assert out.dtype == expected.dtype == dtype
    exact = small(fused=False, dtype=torch.float64).eval()(x.double())
    assert relative_error(out, exact) <= TOLERANCES[dtype].forward + relative_error(expected, exact)


@HALF
def test_a_scaled_step_is_the_step(dtype: torch.dtype) -> None:
    """With gradients scaled by a power of 2 and unscaled again, the parameters move as without a scaler."""
    moved = []
    for scaler in (GradScaler("cpu", init_scale=2.0**8), GradScaler("cpu", enabled=False)):
        model = small(dropout=0.0, drop_connect=0.0)
        before = joined(list(model.parameters())).clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with torch.autocast("cpu", dtype):
            loss = nn.functional.cross_entropy(model(images()), torch.tensor([0, 1, 2]))
        scaler.scale(loss).backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
        scaler.step(optimizer)
        scaler.update()
        moved.append(joined(list(model.parameters())) - before)
    assert moved[1].norm() > 1e-3
    assert relative_error(moved[0], moved[1]) <= TOLERANCES[dtype].gradient


def test_a_step_with_infinite_gradients_is_skipped() -> None:
    """float16 overflows in backward; the parameters stay, the scale halves, and the next step is taken."""
    model = small(dropout=0.0, drop_connect=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler("cpu", init_scale=2.0**24)
    before = {name: p.clone() for name, p in model.named_parameters()}

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = nn.functional.cross_entropy(model(images()), torch.tensor([0, 1, 2]))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    step()
    assert not all(p.grad.isfinite().all() for p in model.parameters())  # type: ignore[union-attr]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert scaler.get_scale() == 2.0**23
    scaler.update(2.0**8)
    step()
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.isfinite().all() for p in model.parameters())
