"""Work goes to the current stream, forward and backward, and the host waits for none of it."""

import pytest
import torch

from gpu.steps import eager, grad_like, leaves_of, refill, step
from operators.axes import LAYOUTS
from operators.cases import CASES
from operators.parity import check_identical

SHAPE = (5, 41, 23, 22)
CYCLES = 400_000_000
"""A fifth of a second, in which a kernel on a stream that does not wait has long run."""


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", CASES)
def test_current_stream(operator: str, layout: str, device: torch.device) -> None:
    """The inputs are NaN until the producer's stream, much later, writes them; only the consumer's waits for that.

    Both are streams of their own, so a kernel on the default stream, or on any other, would read the NaN. The gradient
    is written late on the consumer's stream, so a backward elsewhere would read NaN as well.
    """
    case = CASES[operator](SHAPE, layout=layout).on(device)
    grad = grad_like(case.call(leaves_of(case)).detach())
    expected = eager(case, grad)

    leaves, late_grad = leaves_of(case), torch.full_like(grad, torch.nan)
    with torch.no_grad():
        for t in leaves.values():
            t.fill_(torch.nan)
    torch.cuda.synchronize(device)
    producer, consumer, written = torch.cuda.Stream(device), torch.cuda.Stream(device), torch.cuda.Event()
    with torch.cuda.stream(producer):
        torch.cuda._sleep(CYCLES)
        refill(leaves, case)
        written.record(producer)
    with torch.cuda.stream(consumer):
        consumer.wait_event(written)
        late_grad.copy_(grad)
        result = step(case.call, leaves, late_grad)
        finished = torch.cuda.Event()
        finished.record(consumer)
    torch.cuda.current_stream(device).wait_event(finished)
    check_identical(result, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", CASES)
def test_backward_after_a_late_gradient(operator: str, layout: str, device: torch.device) -> None:
    """Forward is long done when, on its stream, the gradient arrives."""
    case = CASES[operator](SHAPE, layout=layout).on(device)
    grad = grad_like(case.call(leaves_of(case)).detach())
    expected = eager(case, grad)

    leaves, late_grad = leaves_of(case), torch.full_like(grad, torch.nan)
    torch.cuda.synchronize(device)
    stream = torch.cuda.Stream(device)
    wanted = [name for name, t in leaves.items() if t.requires_grad]
    with torch.cuda.stream(stream):
        out = case.call(leaves)
        stream.synchronize()
        torch.cuda._sleep(CYCLES)
        late_grad.copy_(grad)
        gradients = torch.autograd.grad(out, [leaves[name] for name in wanted], late_grad)
    stream.synchronize()
    for name, g in zip(wanted, gradients, strict=True):
        assert torch.equal(g, expected.gradients[name]), name


@pytest.mark.parametrize("training", [True, False], ids=("training", "frozen"))
@pytest.mark.parametrize("operator", CASES)
def test_nothing_synchronises(operator: str, training: bool, device: torch.device) -> None:
    """By torch's own account, and by the clock: the host is through while the device still sleeps."""
    mode = "training" if training else "frozen"
    options = {"mbconv_core": {"bn1": mode, "bn2": mode}, "squeeze_excite": {}}.get(operator, {"training": training})
    case = CASES[operator](SHAPE, **options).on(device)
    leaves = leaves_of(case)
    grad = grad_like(case.call(leaves).detach())
    # What is loaded and allocated at the first call is there afterwards.
    for _ in range(2):
        step(case.call, leaves, grad)
        with torch.no_grad():
            case.call(leaves)
    torch.cuda.synchronize(device)
    slept = torch.cuda.Event()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(CYCLES)
        slept.record()
        step(case.call, leaves, grad)
        with torch.no_grad():
            case.call(leaves)
        assert not slept.query(), "the host waited for the device"
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize(device)
