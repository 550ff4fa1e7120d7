"""What a training step allocates at its peak, and that nothing of it stays."""

import pytest
import torch

from gpu.steps import grad_like, leaves_of, step
from operators.axes import LAYOUTS
from operators.cases import Shape, mbconv_core_case
from operators.sampling import label

VECTORS = 1.05
"""Statistics, (N, C) vectors and the parts' partial sums: a twentieth of the activations, at these shapes."""

SHAPES = [((32, 96, 112, 112), 3, 2), ((64, 144, 56, 56), 3, 1), ((64, 240, 28, 28), 5, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=label)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "kernel", "stride"), SHAPES, ids=label)
def test_peak_of_mbconv_core(
    shape: Shape, kernel: int, stride: int, layout: str, dtype: torch.dtype, device: torch.device
) -> None:
    """Beside u and the gradient of out, which the caller holds: y and out in forward, and du in backward.

    BN1's input gradient is computed in place on dv1, and neither a, z, dz nor dy is ever written.
    """
    case = mbconv_core_case(shape, kernel=kernel, stride=stride, squeezed=10, layout=layout, dtype=dtype).on(device)
    leaves = leaves_of(case)
    grad = grad_like(case.call(leaves).detach())
    step(case.call, leaves, grad)
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)

    torch.cuda.reset_peak_memory_stats(device)
    out = case.call(leaves)
    forward = torch.cuda.max_memory_allocated(device) - before
    assert forward <= VECTORS * 2 * out.nbytes, f"{forward / out.nbytes:.2f} times out, expected out and y"

    du = torch.autograd.grad(out, leaves["x"], grad)[0]
    peak = torch.cuda.max_memory_allocated(device) - before
    bound = VECTORS * (2 * out.nbytes + du.nbytes)
    assert peak <= bound, f"{peak / 1e6:.1f} MB, expected at most {bound / 1e6:.1f} MB: out, y and du"

    del out, du
    torch.cuda.synchronize(device)
    assert torch.cuda.memory_allocated(device) == before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_peak_of_inference(layout: str, device: torch.device) -> None:
    """Out, and at most one more of its size before the scale; nothing of the input's size."""
    shape, kernel, stride = SHAPES[0]
    options = {"kernel": kernel, "stride": stride, "bn1": "frozen", "bn2": "frozen"}
    case = mbconv_core_case(shape, layout=layout, **options).on(device)
    with torch.no_grad():
        case.call(case.tensors)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        out = case.call(case.tensors)
    peak = torch.cuda.max_memory_allocated(device) - before
    assert peak <= VECTORS * 2 * out.nbytes
