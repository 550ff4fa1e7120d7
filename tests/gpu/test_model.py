"""EfficientNet-B0 on the device: fused and unfused train alike."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import effnet
from tolerances import relative_error

CLASSES = 10
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """Convolutions and matrix products without TF32, whose three digits would hide everything else."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def images(batch: int, device: torch.device, layout: str) -> tuple[Tensor, Tensor]:
    """Noise and classes, the same on every call."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, 64, 64, generator=generator, dtype=torch.float64)
    classes = torch.randint(CLASSES, (batch,), generator=generator)
    return x.to(device).contiguous(memory_format=LAYOUTS[layout]), classes.to(device)


def network(device: torch.device, *, fused: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    return effnet.create_model("efficientnet_b0", num_classes=CLASSES, fused=fused).to(device)


def loss_and_gradients(model: torch.nn.Module, x: Tensor, classes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Of one step, with the same draws of dropout and drop-connect at every call."""
    torch.manual_seed(2)
    loss = F.cross_entropy(model(x), classes)
    parameters = dict(model.named_parameters())
    return loss.detach(), dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_agrees_in_float64(layout: str, device: torch.device) -> None:
    """Two steps of SGD: losses, gradients, running statistics and weights."""
    x, classes = images(8, device, layout)
    models = [network(device, fused=fused).double() for fused in (False, True)]
    for _ in range(2):
        (loss, expected), (fused_loss, actual) = (loss_and_gradients(model, x, classes) for model in models)
        assert relative_error(fused_loss, loss) < 1e-10
        for name, g in expected.items():
            torch.testing.assert_close(actual[name], g, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
        with torch.no_grad():
            for model, gradients in zip(models, (expected, actual), strict=True):
                for name, parameter in model.named_parameters():
                    parameter -= 0.01 * gradients[name]
    unfused, fused = (model.state_dict() for model in models)
    for name, t in unfused.items():
        torch.testing.assert_close(fused[name], t, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_agrees_in_float32(layout: str, device: torch.device) -> None:
    x, classes = images(16, device, layout)
    results = [loss_and_gradients(network(device, fused=fused), x.float(), classes) for fused in (False, True)]
    (loss, expected), (fused_loss, actual) = results
    assert relative_error(fused_loss, loss) < 1e-5
    together = [torch.cat([g.flatten() for g in gradients.values()]) for gradients in (actual, expected)]
    assert relative_error(*together) < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_training_under_autocast(dtype: torch.dtype, device: torch.device) -> None:
    """As mixed precision runs it: losses agree as far as the half type goes, and every gradient is finite."""
    x, classes = images(16, device, "channels_last")
    with torch.autocast(device.type, dtype):
        results = [loss_and_gradients(network(device, fused=fused), x.float(), classes) for fused in (False, True)]
    (loss, _), (fused_loss, gradients) = results
    assert relative_error(fused_loss, loss) < 0.05
    assert all(g.isfinite().all() for g in gradients.values())


def test_inference_agrees(device: torch.device) -> None:
    x, _ = images(4, device, "channels_last")
    with torch.no_grad():
        expected, actual = (network(device, fused=fused).double().eval()(x) for fused in (False, True))
    assert relative_error(actual, expected) < 1e-10


def test_a_training_step_does_not_synchronise(device: torch.device) -> None:
    """By torch's own account, the network around the operators included."""
    x, classes = images(8, device, "channels_last")
    model = network(device, fused=True)
    loss_and_gradients(model, x.float(), classes)
    x = x.float()
    parameters = list(model.parameters())
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(F.cross_entropy(model(x), classes), parameters)
    finally:
        torch.cuda.set_sync_debug_mode("default")
