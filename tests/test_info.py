"""``effnet info``: costs against real runs and other counters, and what the command prints."""

import subprocess
import sys

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch.autograd.graph import saved_tensors_hooks
from torchvision.models import efficientnet_b0
from typer.testing import CliRunner

import effnet
import effnet_kernels
from effnet.cli.app import app
from effnet.info import fused_missing_reason, variant_cost


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two pictures are not worth splitting."""
    torch.set_num_threads(1)


def really_saved(model: torch.nn.Module, resolution: int, pictures: int) -> float:
    """Bytes per picture that a real forward pass leaves to autograd, each storage once, parameters not counted."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(torch.randn(pictures, 3, resolution, resolution))
    return sum(storage.nbytes() for storage in saved.values()) / pictures


def test_saved_memory_is_that_of_a_real_run() -> None:
    traced = variant_cost("efficientnet_b0")
    real = really_saved(effnet.create_model("efficientnet_b0", fused=False), 224, pictures=2)
    assert traced.saved_bytes == pytest.approx(real, rel=1e-4)
    assert traced.saved_bytes == pytest.approx(88.3e6, rel=1e-3)
    assert really_saved(efficientnet_b0(), 224, pictures=2) == pytest.approx(traced.saved_bytes, rel=1e-3)


@pytest.mark.skipif(fused_missing_reason() is not None, reason=f"no fused operators: {fused_missing_reason()}")
def test_fused_memory_is_that_of_a_real_run_and_less() -> None:
    traced = variant_cost("efficientnet_b0")
    real = really_saved(effnet.create_model("efficientnet_b0", fused=True), 224, pictures=2)
    assert traced.fused_saved_bytes == pytest.approx(real, rel=1e-4)
    assert traced.fused_saved_bytes is not None
    assert traced.fused_saved_bytes < 0.5 * traced.saved_bytes


# Stages of one block, of many, without squeeze-and-excite, and of Fused-MBConv.
@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_lite1", "efficientnetv2_s"])
def test_cost_is_that_of_the_whole_network(name: str) -> None:
    cost = variant_cost(name)
    model = effnet.create_model(name, fused=False).eval()
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert cost.resolution == model.variant.resolution
    pictures = torch.zeros(1, 3, cost.resolution, cost.resolution)
    counter = FlopCountAnalysis(model, pictures).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert cost.macs == pytest.approx(counter.total(), rel=2e-3)


@pytest.mark.parametrize(
    ("name", "parameters", "gmac"),
    [
        ("efficientnet_b7", 66_347_960, 38.33),
        ("efficientnet_l2", 480_309_308, 479.1),
        ("efficientnetv2_m", 54_139_356, 24.76),
    ],
)
def test_large_variants_cost_what_is_published(name: str, parameters: int, gmac: float) -> None:
    cost = variant_cost(name)
    assert cost.parameters == parameters
    assert cost.macs / 1e9 == pytest.approx(gmac, abs=0.05 if gmac > 100 else 0.005)


def test_command_prints_variants_backends_and_build() -> None:
    arguments = ["info", "--model", "efficientnet_b0", "--model", "efficientnet_lite0"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for expected in ("5,288,548", "0.40", "224", "88.3 MB", "4,652,008", "79.0 MB"):
        assert expected in result.output
    assert "efficientnet_b1" not in result.output
    for backend, reason in effnet_kernels.backends().items():
        assert backend in result.output
        assert reason is None or reason[:60] in result.output


def test_unknown_variant_is_refused() -> None:
    result = CliRunner().invoke(app, ["info", "--model", "resnet50"], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert "--model" in result.output and "resnet50" in result.output


def test_module_runs_as_the_command() -> None:
    finished = subprocess.run([sys.executable, "-m", "effnet", "--help"], capture_output=True, text=True, check=False)
    assert finished.returncode == 0
    for command in ("train", "predict", "info"):
        assert command in finished.stdout
