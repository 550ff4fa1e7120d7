"""Copies, pickles, moves, averaged and borrowed weights of fused networks that have run inference before.

Inference on CPU prepares weights; none of these may meet those of another moment, or carry them along.
"""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import effnet_kernels as ek
from networks import agree, images, small
from operators.recording import Recorder
from tolerances import TOLERANCES, assert_close

BOUND = 2 * TOLERANCES[torch.float32].forward


@pytest.fixture(autouse=True)
def compiled_backend() -> None:
    if ek.backends()["cpu"] is not None:
        pytest.skip(f"no cpu backend: {ek.backends()['cpu']}")


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = model(x)
    return out


def in_use() -> nn.Module:
    """A network in evaluation whose weights for inference are prepared."""
    model: nn.Module = small().eval()
    with Recorder() as recorder:
        logits(model, images())
    assert {name for name, _ in recorder.calls} == {"network_inference"}
    return model


def check(model: nn.Module, like: nn.Module) -> None:
    """``model`` computes what an unfused network with the weights of ``like`` computes."""
    unfused = small(fused=False).eval()
    unfused.load_state_dict(like.state_dict())
    assert_close(logits(model, images()), logits(unfused, images()), BOUND, "logits")


def changed(model: nn.Module) -> nn.Module:
    """A twin with other weights and statistics."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for t in other.state_dict().values():
            if t.is_floating_point():
                t.mul_(1.25)
    return other


def through_pickle(model: nn.Module) -> nn.Module:
    twin: nn.Module = pickle.loads(pickle.dumps(model))
    return twin


def through_a_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twin: nn.Module = torch.load(file, weights_only=False)
    return twin


def through_a_state_dict(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    twin: nn.Module = small(num_classes=5).eval()
    nn.init.zeros_(twin.get_parameter("stem.conv.weight"))
    logits(twin, images())
    twin.load_state_dict(torch.load(file, weights_only=True))
    return twin


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_a_file, through_a_state_dict])
def test_a_copy_has_a_life_of_its_own(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = in_use()
    before = logits(model, images())
    twin = copied(model)
    assert torch.equal(logits(twin, images()), before)
    with torch.no_grad():
        twin.get_parameter("stages.2.0.project.bn.weight").mul_(2)
    check(twin, twin)
    assert not torch.allclose(logits(twin, images()), before)
    assert torch.equal(logits(model, images()), before)


def test_pickles_do_not_carry_prepared_weights() -> None:
    assert len(pickle.dumps(in_use())) == len(pickle.dumps(small().eval()))


def test_functional_call_borrows_the_weights_it_is_given() -> None:
    model = in_use()
    other = changed(model)
    before = logits(model, images())
    with torch.no_grad():
        for _ in range(2):
            out = torch.func.functional_call(model, dict(other.state_dict()), (images(),))
            assert_close(out, logits(other, images()), BOUND, "borrowed")
            assert torch.equal(logits(model, images()), before)


def test_functional_call_gives_gradients_to_what_it_is_given() -> None:
    model, other = in_use(), small(fused=False, dtype=torch.float64).eval()
    model.double()
    given = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    x = images(dtype=torch.float64)
    loss = torch.func.functional_call(model, given, (x,)).square().sum()
    expected = torch.autograd.grad(other(x).square().sum(), list(other.parameters()))
    for actual, t in zip(torch.autograd.grad(loss, list(given.values())), expected, strict=True):
        agree(actual, t)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("swap", [False, True])
def test_loaded_weights_are_used(swap: bool, assign: bool) -> None:
    model = in_use()
    other = changed(model)
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        model.load_state_dict(other.state_dict(), assign=assign)
        check(model, other)
        assert_close(logits(model.double().float(), images()), logits(other, images()), BOUND, "after moves")
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_optimiser_steps_between_evaluations() -> None:
    model = in_use()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = logits(model, images())
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(images()).square().sum().backward()
        optimizer.step()
        model.eval()
        check(model, model)
    assert not torch.allclose(logits(model, images()), before, rtol=1e-2)


def test_averaged_weights_of_pytorch() -> None:
    model = in_use()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    for _ in range(2):
        average.update_parameters(changed(model))
        check(average, average.module)
    assert not torch.allclose(logits(average, images()), logits(model, images()))


def test_averaged_weights_of_timm() -> None:
    timm_utils = pytest.importorskip("timm.utils", reason="timm is not installed")
    model = in_use()
    average = timm_utils.ModelEmaV3(model, decay=0.5)
    for _ in range(2):
        average.update(changed(model))
        check(average, average.module)
    assert not torch.allclose(logits(average, images()), logits(model, images()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_moves_of_dtype(dtype: torch.dtype) -> None:
    """``half()``, ``bfloat16()``, ``double()``, and back to a network in float32 with what the dtype left."""
    model = in_use().to(dtype)
    out = logits(model, images().to(dtype))
    assert out.dtype == dtype
    exact = small(fused=False, dtype=torch.float64).eval()
    exact.load_state_dict(model.state_dict())
    # Ten layers, each of which may round its output and its parts.
    assert_close(out, logits(exact, images().to(dtype).double()), 10 * TOLERANCES[dtype].forward, "logits")
    check(model.float(), exact)


def test_moves_of_layout() -> None:
    """A network in channels_last computes what it did; so do images of either layout, and neither changes the other."""
    model = in_use()
    before = logits(model, images())
    model.to(memory_format=torch.channels_last)
    assert model.get_parameter("stem.conv.weight").is_contiguous(memory_format=torch.channels_last)
    for layout in (torch.channels_last, torch.contiguous_format):
        assert_close(logits(model, images().contiguous(memory_format=layout)), before, BOUND, str(layout))
    gradients = []
    for layout in (torch.channels_last, torch.contiguous_format):
        twin = small(dtype=torch.float64).eval().to(memory_format=layout)
        loss = twin(images(dtype=torch.float64)).square().sum()
        gradients.append(torch.autograd.grad(loss, list(twin.parameters())))
    for a, b in zip(*gradients, strict=True):
        agree(a, b)


def test_moves_of_device() -> None:
    """To another device and back with fresh memory; what was prepared for the old tensors is not used for the new."""
    model = in_use()
    state = changed(model).state_dict()
    model.to("meta")
    assert model(images().to("meta")).device.type == "meta"
    model.to_empty(device="cpu").load_state_dict(state)
    other = small().eval()
    other.load_state_dict(state)
    check(model, other)
