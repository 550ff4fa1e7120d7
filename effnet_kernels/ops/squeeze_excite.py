"""``squeeze_excite``: x · gate(W2 act(W1 mean(x) + b1) + b2), one pass to pool and one to scale."""

from typing import Any

import torch
from torch import Tensor

from effnet_kernels import reference
from effnet_kernels.activations import CODES
from effnet_kernels.arguments import (
    SqueezeExcite,
    check_activation,
    check_activations_tensor,
    check_gate,
    check_squeeze_excite,
)
from effnet_kernels.backend import backend_for
from effnet_kernels.ops.registration import operators, register_backward, register_differentiable
from effnet_kernels.tensors import autocast, dense, dense_like, statistics_dtype


def squeeze_excite(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    activation: str = "silu",
    gate: str = "sigmoid",
) -> Tensor:
    """Squeeze-and-excite: every channel scaled by a gate computed from the means of all channels.

    Computes, per sample::

        p = mean_hw x        s = gate(w2 act(w1 p + b1) + b2)        out = x · s

    Backward: ds = Σ_hw grad x, the two small layers backward to dp, dx = grad · s + dp/HW. Saved for backward: ``x``,
    p (N, C), the hidden layer (N, S) and the gate's input (N, C). Memory traffic in units of x: 2 reads + 1 write
    forward, 3 reads + 1 write backward.

    Args:
        x: (N, C, H, W), float32, float16, bfloat16 or float64; NCHW or channels_last, returned in the same.
        w1, b1: (S, C) and (S,), the squeezing layer; trailing 1×1 dimensions allowed.
        w2, b2: (C, S) and (C,), the exciting layer; trailing 1×1 dimensions allowed.
        activation: between the layers: ``identity``, ``relu``, ``relu6``, ``silu`` or ``hardswish``.
        gate: ``sigmoid`` or ``hardsigmoid``.

    Raises:
        TypeError: a tensor has an unsupported dtype.
        ValueError: an argument has the wrong shape, device or value.

    Source: Hu et al. 2018 (arXiv 1709.01507), section 3.
    """
    check_activations_tensor(x, "x")
    check_activation(activation)
    check_gate(gate)
    x = autocast(x)
    se = SqueezeExcite(w1, b1, w2, b2)
    check_squeeze_excite(se, x.shape[1], x)
    backend = backend_for(x.device, x.dtype)
    if backend == "reference":
        return reference.squeeze_excite(x, se, activation, gate)
    out, *_saved = operators(backend).squeeze_excite(dense(x), *se, CODES[activation], CODES[gate])
    return out


def _fake(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: int, gate: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pooled = x.new_empty((x.shape[0], x.shape[1]), dtype=statistics_dtype(x))
    hidden = x.new_empty((x.shape[0], w1.shape[0]), dtype=statistics_dtype(x))
    return torch.empty_like(x), pooled, hidden, torch.empty_like(pooled)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.activation, ctx.gate = inputs
    _out, *vectors = output
    ctx.mark_non_differentiable(*vectors)
    ctx.save_for_backward(*tensors, *vectors)


def _backward(namespace: Any, ctx: Any, grad: Tensor, *_unused: None) -> tuple[Tensor | None, ...]:
    x, *saved = ctx.saved_tensors
    gradients = namespace.squeeze_excite_backward(dense_like(grad, x), x, *saved, ctx.activation, ctx.gate)
    return (*gradients, None, None)


def _fake_backward(
    grad: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, *_rest: Any
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) for t in (x, w1, b1, w2, b2))


register_differentiable("squeeze_excite", _fake, _setup_context, _backward)
register_backward("squeeze_excite_backward", _fake_backward)
