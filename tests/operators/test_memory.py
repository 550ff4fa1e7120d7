"""Views in, expanded gradients back, and what is kept between forward and backward."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import effnet_kernels as ek
from operators.axes import LAYOUTS
from operators.cases import CASES, EVERY_CASE, Case, laid_out, mbconv_core_case
from operators.parity import Loss, check_parity, weighted_sum
from operators.sampling import label
from processes import run_python

SHAPE = (3, 17, 8, 7)


def every_other_row(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty(n, c, 2 * h, w)[:, :, ::2].copy_(x)


def every_other_column(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty(n, c, h, 2 * w)[..., ::2].copy_(x)


def some_channels(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty(n, c + 5, h, w)[:, 3 : 3 + c].copy_(x)


def some_channels_innermost(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return laid_out(x.new_empty(n, c + 5, h, w), "channels_last")[:, 3 : 3 + c].copy_(x)


def misaligned(x: Tensor) -> Tensor:
    return x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)


def misaligned_channels_last(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty(x.numel() + 1)[1:].view(n, h, w, c).permute(0, 3, 1, 2).copy_(x)


def repeated_sample(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


def transposed(x: Tensor) -> Tensor:
    return x.transpose(2, 3).contiguous().transpose(2, 3)


VIEWS = (
    every_other_row,
    every_other_column,
    some_channels,
    some_channels_innermost,
    misaligned,
    misaligned_channels_last,
    repeated_sample,
    transposed,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=label)
@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__)
@pytest.mark.parametrize("operator", CASES)
def test_views(operator: str, view: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    """A tensor that is not dense, or not aligned, is computed all the same, in the layout it is closest to."""
    case = CASES[operator](SHAPE, dtype=dtype)
    check_parity(case.with_tensors(x=view(case.tensors["x"])))


def summed(out: Tensor) -> Tensor:
    return out.sum()


def averaged(out: Tensor) -> Tensor:
    return out.mean() * 64


def some_rows(out: Tensor) -> Tensor:
    return weighted_sum(out[:, :, ::2])


def other_layout(out: Tensor) -> Tensor:
    """A gradient in the layout that ``out`` does not have."""
    return weighted_sum(out.permute(0, 2, 3, 1).contiguous() if out.is_contiguous() else out.contiguous())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", [summed, averaged, some_rows, other_layout], ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("operator", CASES)
def test_gradients_in_any_layout(operator: str, loss: Loss, layout: str) -> None:
    """Expanded gradients of stride 0, slices, and the layout of the other side."""
    check_parity(CASES[operator](SHAPE, layout=layout), loss=loss)


@pytest.mark.parametrize("operator", CASES)
@pytest.mark.parametrize("shape", [(2, 1, 5, 4), (3, 8, 1, 1), (1, 1, 3, 3), (2, 5, 1, 9)], ids=label)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_that_coincide(layout: str, shape: tuple[int, int, int, int], operator: str) -> None:
    """One channel or one pixel: NCHW and channels_last are the same memory, whatever the strides say."""
    check_parity(
        CASES[operator](shape, layout=layout, eps=0.1)
        if operator != "squeeze_excite"
        else CASES[operator](shape, layout=layout)
    )


def saved_by(case: Case) -> list[Tensor]:
    """What autograd keeps for the backward of ``case``, parameters and vectors included."""
    saved: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    tensors = {
        name: t.detach().requires_grad_(not name.startswith(("mean", "var", "keep")))
        for name, t in case.tensors.items()
    }
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        case.call(tensors)
    return saved


STORES_Y = {"batch_norm_act": False, "depthwise_conv_bn_act": True, "squeeze_excite": False, "mbconv_core": True}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=label)
@pytest.mark.parametrize("operator", CASES)
def test_saved_tensors(operator: str, dtype: torch.dtype, layout: str) -> None:
    """Of activation size: x itself and, after a convolution, y; all else is vectors, in float32."""
    shape = (4, 16, 20, 20)
    options = {"keep": True, "residual": True} if operator == "batch_norm_act" else {}
    if STORES_Y[operator]:
        options["stride"] = 2
    case = CASES[operator](shape, dtype=dtype, layout=layout, **options)
    x = case.tensors["x"]
    saved = saved_by(case)

    large = [t for t in saved if t.numel() >= 4 * 16 * 10 * 10]
    assert [t.data_ptr() for t in large].count(x.data_ptr()) == 1, "x is saved once, and not as a copy"
    others = [t for t in large if t.data_ptr() != x.data_ptr()]
    assert [t.numel() for t in others] == ([4 * 16 * 10 * 10] if STORES_Y[operator] else [])
    assert all(t.dtype == dtype for t in large)
    vectors = [t for t in saved if t.numel() < 4 * 16 * 10 * 10]
    assert all(t.dtype == torch.float32 for t in vectors)
    parameters = sum(t.nbytes for name, t in case.tensors.items() if name not in ("x", "residual"))
    of_the_call = 4 * 16 * 4
    assert sum(t.nbytes for t in vectors) <= parameters + 6 * of_the_call


@pytest.mark.parametrize("operator", CASES)
def test_nothing_is_saved_without_gradient(operator: str) -> None:
    case = CASES[operator](SHAPE)
    saved: list[Tensor] = []
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        out = case.call(case.tensors)
    assert saved == [] and not out.requires_grad


def test_backward_twice_from_the_same_saved_tensors() -> None:
    """Backward writes to nothing that it saved: a second backward over a retained graph gives the same bits."""
    case = mbconv_core_case(SHAPE)
    leaves = {name: t.detach().requires_grad_(not name.startswith(("mean", "var"))) for name, t in case.tensors.items()}
    loss = weighted_sum(case.call({**leaves, **{n: leaves[n].clone() for n in ("mean1", "var1", "mean2", "var2")}}))
    wanted = [t for t in leaves.values() if t.requires_grad]
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    second = torch.autograd.grad(loss, wanted)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


LARGE = (4, 32, 64, 64)


def test_large_activations_reuse_memory() -> None:
    """A second call's tensors are where the first call's were; what waits is given back when asked for."""
    ek.release_cached_memory()
    x = torch.randn(LARGE).contiguous(memory_format=torch.channels_last)

    def address() -> int:
        return ek.batch_norm_act(x, None, None, None, None).data_ptr()

    assert address() == address()
    assert ek.release_cached_memory() >= x.nbytes
    assert ek.release_cached_memory() == 0


def test_memory_in_use_is_not_given_away() -> None:
    ek.release_cached_memory()
    x = torch.randn(LARGE)
    first = ek.batch_norm_act(x, None, None, None, None)
    kept = first.clone()
    second = ek.batch_norm_act(x * 2 + 1, None, torch.ones(32), None, None)
    assert first.data_ptr() != second.data_ptr() and torch.equal(first, kept)
    view = first[1:, 3]
    del first
    assert ek.batch_norm_act(x, None, None, None, None).data_ptr() != kept.data_ptr()
    assert torch.equal(view, kept[1:, 3])


def test_what_waits_is_bounded(tmp_path: Path) -> None:
    """Of sizes that never fit each other, in a process that did nothing else, no more waits than the largest."""
    program = """
import torch
import effnet_kernels as ek
for side in (40, 60, 90, 50, 130, 70, 100, 45):
    ek.batch_norm_act(torch.randn(2, 32, side, side), None, None, None, None)
print(ek.release_cached_memory())
"""
    run = run_python(program, tmp_path)
    largest = 2 * 32 * 130 * 130 * 4
    assert largest <= int(run.stdout) <= 1.1 * largest


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the size of a process is read from /proc")
def test_where_addresses_are_scarce(tmp_path: Path) -> None:
    """Where no range as large as the machine's memory is to be had, memory comes block by block, and still is kept."""
    program = """
import re, resource
import torch
import effnet_kernels as ek
size = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 28),) * 2)
x = torch.randn(4, 32, 64, 64)
addresses = {ek.batch_norm_act(x, None, None, None, None).data_ptr() for _ in range(3)}
for side in (90, 50, 130):
    ek.batch_norm_act(torch.randn(2, 32, side, side), None, None, None, None)
print(len(addresses), ek.release_cached_memory() >= x.nbytes, ek.release_cached_memory())
"""
    run = run_python(program, tmp_path)
    assert run.stdout.split() == ["1", "True", "0"], run.stderr


def test_smaller_activations_share_what_a_larger_one_left(tmp_path: Path) -> None:
    """And are one piece again for the next large one; in a process where nothing else lies between them."""
    program = """
import torch
import effnet_kernels as ek

def address_and_output(images):
    out = ek.batch_norm_act(torch.randn(images, 32, 64, 64), None, None, None, None)
    return out.data_ptr(), out

first, large = address_and_output(16)
size = large.nbytes
del large
parts = [address_and_output(7) for _ in range(2)]
print(all(first <= address < first + size for address, _ in parts))
print(size * 2 // 16 <= ek.release_cached_memory() < size * 2 // 16 + (1 << 16))
parts.clear()
print(address_and_output(16)[0] == first)
print(size <= ek.release_cached_memory() < size + (1 << 16), ek.release_cached_memory())
"""
    run = run_python(program, tmp_path)
    assert run.stdout.split() == ["True", "True", "True", "True", "0"], run.stdout + run.stderr


class _Filled(TorchDispatchMode):
    """The largest tensor that is filled with a number."""

    largest = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::zeros", "aten::zeros_like", "aten::new_zeros", "aten::fill_", "aten::zero_"):
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize("operator", ["depthwise_conv_bn_act", "mbconv_core", "mbconv"])
def test_backward_fills_no_activations(operator: str) -> None:
    """Outputs that are only kept for backward have no gradient, not one of zeros."""
    case = EVERY_CASE[operator]((2, 8, 9, 7))
    x = case.tensors["x"].requires_grad_()
    out = case.call({**case.tensors, "x": x})
    grad = torch.ones_like(out)
    with _Filled() as filled:
        torch.autograd.grad(out, x, grad)
    assert filled.largest < x.numel()
