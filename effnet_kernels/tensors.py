"""Memory layout and dtype of activations on their way into a compiled operator."""

import torch
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout a kernel computes ``x`` in: NCHW where ``x`` is contiguous, else channels_last where strides say so.

    A tensor that is neither (a strided slice) counts as the layout whose innermost dimension it has. Single pixels
    are both; their channels are neighbours in memory, so they count as channels_last.
    """
    single_pixels = x.shape[2] == 1 and x.shape[3] == 1
    if x.is_contiguous() and not single_pixels:
        return torch.contiguous_format
    if x.is_contiguous(memory_format=torch.channels_last) or x.stride(1) == 1:
        return torch.channels_last
    return torch.contiguous_format


def dense(x: Tensor) -> Tensor:
    """``x`` itself where it is dense in its layout, else a dense copy."""
    return x.contiguous(memory_format=memory_format(x))


def dense_like(x: Tensor, like: Tensor) -> Tensor:
    """``x`` in the dtype and layout of ``like``, copied only where it is not."""
    return x.to(like.dtype).contiguous(memory_format=memory_format(like))


def autocast(x: Tensor) -> Tensor:
    """The autocast rule of every operator: activations follow autocast; γ, β, weights and statistics are left alone."""
    device = x.device.type
    # Asking whether autocast is on for meta tensors, which have none, is an error.
    if x.dtype == torch.float64 or device == "meta" or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


def statistics_dtype(x: Tensor) -> torch.dtype:
    """The dtype of per-channel vectors that go with ``x``: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for a backward of an operator on ``tensors``."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
