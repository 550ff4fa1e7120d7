"""``pointwise_conv``: a 1×1 convolution; on CPU in channels_last a matrix product of the pixels as they lie."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from effnet_kernels.arguments import check_activations_tensor, check_pointwise
from effnet_kernels.backend import backend_for
from effnet_kernels.ops.registration import register_backward, register_differentiable
from effnet_kernels.tensors import autocast


def pointwise_conv(x: Tensor, w: Tensor) -> Tensor:
    """A 1×1 convolution without bias: out[n,o,i,j] = Σ_k w[o,k] x[n,k,i,j].

    Backward: dx = wᵀ grad and dw = Σ grad xᵀ over all pixels. Saved for backward: ``x``. On CPU, where ``x`` is
    channels_last, a product of the matrix of its pixels that copies no activation; elsewhere PyTorch's convolution.

    Args:
        x: (N, K, H, W), float32, float16, bfloat16 or float64; NCHW or channels_last, returned in the same.
        w: (O, K, 1, 1).

    Raises:
        TypeError: a tensor has an unsupported dtype.
        ValueError: an argument has the wrong shape or device.
    """
    check_activations_tensor(x, "x")
    check_pointwise(w, "w", x.shape[1], x)
    x = autocast(x)
    if not has_products(x):
        return F.conv2d(x, w.to(x.dtype))
    return torch.ops.effnet_kernels.pointwise_conv(x, w)


def has_products(x: Tensor) -> bool:
    """Whether the CPU's products of pixels serve ``x``: a dense channels_last tensor of that backend."""
    return backend_for(x.device, x.dtype) == "cpu" and x.is_contiguous(memory_format=torch.channels_last)


def _fake(x: Tensor, w: Tensor) -> Tensor:
    shape = (x.shape[0], w.shape[0], x.shape[2], x.shape[3])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(namespace: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, w = ctx.saved_tensors
    needs_dx, needs_dw = ctx.needs_input_grad
    dx, dw = namespace.pointwise_conv_backward(channels_last_like(grad, x), x, w, needs_dx, needs_dw)
    return dx if needs_dx else None, dw if needs_dw else None


def channels_last_like(grad: Tensor, x: Tensor) -> Tensor:
    """``grad`` in the dtype of ``x`` and in channels_last."""
    return grad.to(x.dtype).contiguous(memory_format=torch.channels_last)


def _fake_backward(grad: Tensor, x: Tensor, w: Tensor, needs_dx: bool, needs_dw: bool) -> tuple[Tensor, Tensor]:
    nothing = x.new_empty(0, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    return (
        torch.empty_like(x) if needs_dx else torch.empty_like(nothing),
        torch.empty_like(w) if needs_dw else torch.empty_like(nothing),
    )


register_differentiable("pointwise_conv", _fake, _setup_context, _backward)
register_backward("pointwise_conv_backward", _fake_backward)
