"""``torch.func``, forward-mode and higher derivatives of fused networks: the definition's results, or a refusal."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import effnet_kernels as ek
from networks import agree, images, small

F64 = torch.float64


@pytest.fixture(autouse=True)
def compiled_backend() -> Iterator[None]:
    if ek.backends()["cpu"] is not None:
        pytest.skip(f"no cpu backend: {ek.backends()['cpu']}")
    yield
    ek.set_backend("auto")


def twins() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Fused and unfused, in evaluation; the fused one has its weights for inference prepared."""
    fused, unfused = small(dtype=F64).eval(), small(dtype=F64, fused=False).eval()
    with torch.no_grad():
        fused(images(dtype=F64))
    return fused, unfused


@pytest.mark.parametrize("gradients", [True, False])
def test_vmap(gradients: bool) -> None:
    fused, unfused = twins()
    x = torch.stack([images(dtype=F64, seed=seed) for seed in range(2)])
    with torch.set_grad_enabled(gradients):
        agree(torch.func.vmap(fused)(x), unfused(x.flatten(0, 1)).unflatten(0, (2, 3)))


def test_vmap_over_parameters() -> None:
    fused, _ = twins()
    others = [small(dtype=F64).eval() for _ in range(2)]
    for scale, other in enumerate(others):
        torch.nn.init.constant_(other.stem.bn.weight, 1.0 + scale)
    parameters, buffers = torch.func.stack_module_state(others)
    x = images(dtype=F64)
    out = torch.func.vmap(lambda p, b: torch.func.functional_call(fused, (p, b), (x,)))(parameters, buffers)
    for one, other in zip(out, others, strict=True):
        agree(one, other(x))


def test_gradients_of_every_sample() -> None:
    fused, unfused = twins()
    x = images(dtype=F64)
    parameters = {name: p.detach() for name, p in fused.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(fused, parameters, (image[None],)).square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for n in range(len(x)):
        expected = torch.autograd.grad(unfused(x[n : n + 1]).square().sum(), list(unfused.parameters()))
        for name, t in zip(parameters, expected, strict=True):
            agree(gradients[name][n], t)


def test_jvp_is_the_directional_derivative() -> None:
    fused, unfused = twins()
    x, v = images(dtype=F64), images(dtype=F64, seed=2)
    out, tangent = torch.func.jvp(fused, (x,), (v,))
    agree(out, unfused(x))
    step = 1e-5
    difference = (unfused(x + step * v) - unfused(x - step * v)) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-8)
    assert tangent.norm() > 1e-3


@pytest.mark.parametrize("frozen", [False, True])
def test_dual_tensors(frozen: bool) -> None:
    """Forward-mode differentiation keeps its tangents where no backward is wanted, too."""
    fused, unfused = twins()
    fused.requires_grad_(not frozen)
    x, v = images(dtype=F64), images(dtype=F64, seed=2)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(fused(forward_ad.make_dual(x, v))).tangent
    assert tangent is not None
    agree(tangent, torch.func.jvp(unfused, (x,), (v,))[1])


def test_second_derivatives_by_composition() -> None:
    fused, unfused = twins()
    x, v = images(1, dtype=F64), images(1, dtype=F64, seed=2)

    def product(model: torch.nn.Module) -> Tensor:
        return torch.func.jvp(torch.func.grad(lambda t: model(t).square().sum()), (x,), (v,))[1]

    agree(product(fused), product(unfused))


def test_a_chosen_backend_is_not_left_silently() -> None:
    model = small()
    ek.set_backend("cpu")
    with pytest.raises(RuntimeError, match=r"'cpu' does not serve torch\.func transforms .*use 'auto' or 'reference'"):
        torch.func.vmap(model.eval())(images()[None])
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="'cpu' does not serve forward-mode"):
        model(images())
    ek.set_backend("reference")
    assert torch.func.vmap(model)(images()[None]).shape == (1, 3, 5)


@pytest.mark.parametrize("training", [True, False])
def test_double_backward_names_the_operator(training: bool) -> None:
    model = small(dtype=F64).train(training)
    x = images(dtype=F64).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    expected = torch.autograd.grad(small(dtype=F64, fused=False).train(training)(x).square().sum(), x)
    if not training:  # drop-connect and dropout draw anew
        agree(gradient, expected[0])
    with pytest.raises(RuntimeError, match=r"effnet_kernels::\w+_backward has no second derivative.*'reference'"):
        torch.autograd.grad(gradient.sum(), x)
    ek.set_backend("reference")
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    assert torch.autograd.grad(gradient.square().sum(), x)[0].norm() > 0


def test_batched_gradients_name_the_operator_and_vmap() -> None:
    fused, unfused = twins()
    x, rows = images(1, dtype=F64).requires_grad_(), torch.eye(5, dtype=F64)[:, None]
    out = fused(x)
    message = r"effnet_kernels::\w+: its backward does not run under vmap"
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(out, x, rows, is_grads_batched=True, retain_graph=True)
    with pytest.raises(RuntimeError, match=r"effnet_kernels::\w+: .* not run under torch\.func .*vmap"):
        torch.func.vmap(lambda row: torch.autograd.grad(out, x, row, retain_graph=True))(rows)
    by_row = [torch.autograd.grad(out, x, row, retain_graph=True)[0] for row in rows]
    agree(torch.cat(by_row), torch.func.jacrev(unfused)(x.detach())[0, :, 0])


def test_tangents_of_gradients_are_not_lost() -> None:
    model = small(dtype=F64).eval()
    x = images(1, dtype=F64).requires_grad_()
    out = model(x)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"effnet_kernels::\w+: .*forward-mode"):
        torch.autograd.grad(out, x, forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out)))
