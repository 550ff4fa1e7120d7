"""EfficientNet-B0 on digits: the losses of a few steps on Triton's kernels are those of the reference."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import effnet
import effnet_kernels as ek
from processes import run_python

STEPS = 2


def losses(
    backend: str, dtype: torch.dtype = torch.float32, layout: torch.memory_format = torch.channels_last
) -> list[float]:
    """Of a fused B0 from one seed under plain SGD.

    From a blank classifier: one that starts at random lets a loss on so few images be carried by rounding.
    """
    from sklearn.datasets import load_digits

    ek.set_backend(backend)
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images[:4], dtype=torch.float32).view(4, 1, 8, 8).expand(4, 3, 8, 8) / 16
    x = F.interpolate(x, (32, 32)).to(dtype).contiguous(memory_format=layout)
    target = torch.tensor(labels[:4])
    torch.manual_seed(0)
    model = effnet.create_model("efficientnet_b0", num_classes=10, dropout=0.0, drop_connect=0.0)
    model.fused = True
    with torch.no_grad():
        model.classifier.weight.zero_()
    model.train().to(dtype).to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    found = []
    for _ in range(STEPS):
        loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


@pytest.mark.slow
def test_b0_trains_as_on_the_reference() -> None:
    """As close to float64 as the reference is in float32, give or take what differs between its own layouts.

    The last maps are of 1×1 pixels, a BatchNorm of four values: what rounding does grows a thousandfold in a step.
    """
    exact = losses("reference", torch.float64)
    assert max(exact) - min(exact) > 0.05
    peers = [losses("reference", layout=layout) for layout in (torch.channels_last, torch.contiguous_format)]
    for step, found in enumerate(losses("triton")):
        noise = max(abs(peer[step] - exact[step]) for peer in peers)
        assert abs(found - exact[step]) <= 8 * noise + 1e-6 * exact[step], (step, found, exact[step], noise)


def test_the_environment_variable_chooses_triton(tmp_path: Path) -> None:
    code = """
import torch, effnet_kernels as ek
x = torch.randn(2, 4, 5, 6, requires_grad=True)
with torch.profiler.profile() as profile:
    ek.squeeze_excite(x, torch.randn(2, 4), torch.randn(2), torch.randn(4, 2), torch.randn(4)).sum().backward()
names = {event.key for event in profile.key_averages()}
print(ek.backend_for(x.device), sorted(name for name in names if name.startswith("effnet_kernels")))
"""
    result = run_python(code, tmp_path, EFFNET_KERNELS_BACKEND="triton", TRITON_INTERPRET="1")
    names = "['effnet_kernels_triton::squeeze_excite', 'effnet_kernels_triton::squeeze_excite_backward']"
    assert result.stdout == f"triton {names}\n", result.stderr
