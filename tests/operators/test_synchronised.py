"""The halves that operators fall into where BatchNorm is synchronised, here in one process: what their definitions say.

Several processes are in ``tests/test_distributed.py``.
"""

import pytest
import torch
from torch import Tensor

from effnet_kernels import BatchNorm, SqueezeExcite, ops, reference, synchronised
from operators.axes import LAYOUTS
from operators.cases import Values
from operators.sampling import label
from tolerances import TOLERANCES, assert_close

CHANNELS, SQUEEZED = 9, 3
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def tensors_of(dtype: torch.dtype, layout: str) -> dict[str, Tensor]:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    values = Values(11, wide)
    found = {"x": values.activations((3, CHANNELS, 9, 7), dtype, layout), "w": values.normal(CHANNELS, 1, 3, 3)}
    for name in ("gamma1", "gamma2"):
        # Activations far from linear: after a linear one BN2 would undo a shift by BN1, whose gradient would cancel.
        found[name] = values.normal(CHANNELS, scale=0.3) + 2
    shapes = {"beta1": (CHANNELS,), "beta2": (CHANNELS,), "w1": (SQUEEZED, CHANNELS), "b1": (SQUEEZED,)}
    for name, shape in {**shapes, "w2": (CHANNELS, SQUEEZED), "b2": (CHANNELS,)}.items():
        found[name] = values.normal(*shape, scale=0.5)
    return found


def norm_of(t: dict[str, Tensor], number: int) -> BatchNorm:
    zeros = torch.zeros(CHANNELS, dtype=t["w"].dtype)
    return BatchNorm(t[f"gamma{number}"], t[f"beta{number}"], zeros, zeros + 1)


def core(t: dict[str, Tensor], *, fused: bool, norms: bool) -> tuple[Tensor, ...]:
    """``mbconv_core``, with BN1 and SE or without them, and its running statistics."""
    bn2, bn1 = norm_of(t, 2), norm_of(t, 1) if norms else None
    se = SqueezeExcite(t["w1"], t["b1"], t["w2"], t["b2"]) if norms else None
    if fused:
        out = synchronised.mbconv_core(
            t["x"], t["w"], bn2, bn1, se, 2, (0, 1, 1, 1), "silu", "sigmoid", group=None, fused=True
        )
    else:
        out = reference.mbconv_core(t["x"], t["w"], bn2, bn1, se, 2, (0, 1, 1, 1), "silu", "sigmoid")
    statistics = [v for bn in (bn2, bn1) if bn is not None for v in (bn.mean, bn.var)]
    return (out, *(v for v in statistics if v is not None))


def norm_and_act(t: dict[str, Tensor], *, fused: bool) -> tuple[Tensor, ...]:
    bn = norm_of(t, 1)
    assert bn.mean is not None and bn.var is not None
    if not fused:
        return reference.batch_norm_act(t["x"], bn, "relu6"), bn.mean, bn.var
    x, constants = synchronised.synchronised(t["x"], bn, None, fused=True)
    gamma, beta, mean, var = constants[:4]
    out = ops.batch_norm_act(x, gamma, beta, mean, var, training=False, eps=bn.eps, activation="relu6")
    return out, bn.mean, bn.var


COMPUTED = {
    "batch_norm_act": norm_and_act,
    "mbconv_core": lambda t, fused: core(t, fused=fused, norms=True),
    "mbconv_core without BN1 and SE": lambda t, fused: core(t, fused=fused, norms=False),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", COMPUTED)
def test_halves(name: str, layout: str, dtype: torch.dtype) -> None:
    """Outputs, gradients and running statistics are the definition's in float64."""
    bounds = TOLERANCES[dtype]
    narrow = {k: t.requires_grad_() for k, t in tensors_of(dtype, layout).items()}
    wide = {k: t.detach().double().requires_grad_() for k, t in narrow.items()}
    found, expected = COMPUTED[name](narrow, fused=True), COMPUTED[name](wide, fused=False)
    for number, (t, expected_t) in enumerate(zip(found, expected, strict=True)):
        assert_close(t, expected_t, bounds.forward, f"result {number}")
    weights = Values(12, torch.float64).normal(*expected[0].shape).to(dtype)
    found[0].backward(weights)
    expected[0].backward(weights.double())
    for key, t in wide.items():
        gradient = narrow[key].grad
        assert (gradient is None) == (t.grad is None), key
        if gradient is not None and t.grad is not None:
            assert_close(gradient, t.grad, bounds.gradient, f"gradient of {key}")
