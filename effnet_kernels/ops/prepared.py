"""Operators for inference on CPU over prepared weights: BatchNorm folded in, matrices packed as the kernels read them.

``PreparedConv`` is act(BN(conv(x))) (+ residual), ``PreparedMBConv`` a whole MBConv block. Both are made once from the
layers' tensors and called for every batch; what they hold are copies, which do not follow the layers.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from effnet_kernels.activations import CODES
from effnet_kernels.arguments import BatchNorm, Padding, SqueezeExcite, output_size
from effnet_kernels.ops.registration import register
from effnet_kernels.ops.weight_memory import join
from effnet_kernels.tensors import autocast

_LANES = 16  # of the widest vector; csrc/common/cpu/packed_matrix.h

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What activations may be."""


class FoldedConv:
    """A convolution's weight and bias with the BatchNorm that follows it folded in, in float64.

    BN(conv(x)) = conv'(x) + bias' with weight' = weight · γ/√(var + eps) and bias' = β − mean · γ/√(var + eps).
    """

    def __init__(self, weight: Tensor, bn: BatchNorm) -> None:
        assert bn.mean is not None and bn.var is not None
        scale = (bn.var.double() + bn.eps).rsqrt()
        if bn.gamma is not None:
            scale = scale * bn.gamma.double()
        self.weight = weight.double() * scale[:, None, None, None]
        self.bias = -bn.mean.double() * scale
        if bn.beta is not None:
            self.bias = self.bias + bn.beta.double()


def pack_vector(values: Tensor) -> Tensor:
    """The last dimension zero-padded to whole vectors, in float32."""
    return F.pad(values, (0, -values.shape[-1] % _LANES)).float().contiguous()


def pack_matrix(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(depth, columns) as (⌈columns / 16⌉, depth, 16), zero-padded, in float32.

    In bfloat16 two neighbours along an even depth are together in the place of one float32.
    """
    padded = pack_vector(matrix)
    packed = padded.view(padded.shape[0], -1, _LANES).transpose(0, 1).contiguous()
    if dtype == torch.float32:
        return packed
    pairs = packed.to(dtype).view(packed.shape[0], -1, 2, _LANES).transpose(2, 3).contiguous()
    return pairs.view(torch.float32).squeeze(3)


def pack_conv(weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(O, C, K, K) as the packed matrix of depth (ky, kx, c)."""
    return pack_matrix(weight.permute(2, 3, 1, 0).flatten(0, 2), dtype)


def _product_dtype(dtype: torch.dtype, *depths: int) -> torch.dtype:
    """What products multiply: bfloat16 where activations are and every depth is a number of pairs, else float32."""
    return dtype if dtype == torch.bfloat16 and all(depth % 2 == 0 for depth in depths) else torch.float32


@dataclass(frozen=True)
class PreparedConv:
    """act(BN(conv(x))) (+ residual) in inference, for x in any layout; the result is channels_last.

    Cost: one read of x (the k² pixels of a patch are gathered in the cache), one write of the result.
    """

    weights: Tensor
    out_channels: int
    kernel_size: int
    stride: int
    activation: int
    bfloat16_products: bool

    @staticmethod
    def make(
        weight: Tensor, bn: BatchNorm, *, stride: int, activation: str, dtype: torch.dtype = torch.float32
    ) -> "PreparedConv":
        """From a dense convolution's ``weight`` of (O, C, K, K) and the BatchNorm after it, for ``x`` of ``dtype``."""
        folded = FoldedConv(weight, bn)
        pointwise = weight.shape[2] == 1 and stride == 1
        product = _product_dtype(dtype, weight.shape[1]) if pointwise else torch.float32
        return PreparedConv(
            join([pack_conv(folded.weight, product), pack_vector(folded.bias)]),
            weight.shape[0],
            weight.shape[2],
            stride,
            CODES[activation],
            product == torch.bfloat16,
        )

    @staticmethod
    def linear(weight: Tensor, bias: Tensor, dtype: torch.dtype = torch.float32) -> "PreparedConv":
        """From a fully connected layer's ``weight`` of (O, C) and ``bias``: the convolution of a single pixel."""
        product = _product_dtype(dtype, weight.shape[1])
        return PreparedConv(
            join([pack_matrix(weight.t(), product), pack_vector(bias)]),
            weight.shape[0],
            1,
            1,
            CODES["identity"],
            product == torch.bfloat16,
        )

    def __call__(self, x: Tensor, padding: Padding, residual: Tensor | None = None) -> Tensor:
        x = autocast(x)
        if self.bfloat16_products:
            x = x.contiguous(memory_format=torch.channels_last)
        if residual is not None:
            residual = residual.to(x.dtype).contiguous(memory_format=torch.channels_last)
        out: Tensor = torch.ops.effnet_kernels.conv_inference.default(
            x,
            self.weights,
            residual,
            self.out_channels,
            self.kernel_size,
            self.stride,
            padding,
            self.activation,
            self.bfloat16_products,
        )
        return out


@dataclass(frozen=True)
class PreparedMBConv:
    """BN3(project(SE(act(BN2(depthwise(act(BN1(expand(x)))))))) (+ x) in inference; the result is channels_last.

    Expanded rows are convolved while they are in the cache and never written to memory. Cost: one read of x for every
    48 expanded channels, in the cache where x is that small, and one write of the result.
    """

    weights: Tensor
    sizes: tuple[int, int, int, int, int]
    """Expanded, projected and squeezed channels, kernel size, stride."""
    activation: int
    gate: int
    expands: bool
    residual: bool
    bfloat16_products: bool

    @staticmethod
    def make(
        expand: tuple[Tensor, BatchNorm] | None,
        depthwise: tuple[Tensor, BatchNorm],
        se: SqueezeExcite | None,
        project: tuple[Tensor, BatchNorm],
        *,
        stride: int,
        activation: str,
        gate: str,
        residual: bool,
        dtype: torch.dtype = torch.float32,
    ) -> "PreparedMBConv":
        """From the weights of the block's convolutions, each with the BatchNorm after it, and squeeze-and-excite's.

        For ``x`` of ``dtype``: in bfloat16, with even numbers of channels, so are the products' factors.
        """
        channels, kernel_size = depthwise[0].shape[0], depthwise[0].shape[2]
        in_channels = channels if expand is None else expand[0].shape[1]
        product = _product_dtype(dtype, in_channels, channels)
        sections = []
        if expand is not None:
            folded = FoldedConv(*expand)
            sections += [pack_conv(folded.weight, product), pack_vector(folded.bias)]
        folded = FoldedConv(*depthwise)
        sections += [pack_vector(folded.weight.flatten(1).t()), pack_vector(folded.bias)]
        if se is not None:
            sections += [pack_matrix(se.w1.flatten(1).t()), pack_vector(se.b1)]
            sections += [pack_matrix(se.w2.flatten(1).t()), pack_vector(se.b2)]
        folded = FoldedConv(*project)
        sections += [pack_conv(folded.weight, product), pack_vector(folded.bias)]
        return PreparedMBConv(
            join(sections),
            (channels, project[0].shape[0], 0 if se is None else se.w1.shape[0], kernel_size, stride),
            CODES[activation],
            CODES[gate],
            expand is not None,
            residual,
            product == torch.bfloat16,
        )

    def __call__(self, x: Tensor, padding: Padding) -> Tensor:
        x = autocast(x)
        if not x.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)
        out: Tensor = torch.ops.effnet_kernels.mbconv_inference.default(
            x,
            self.weights,
            *self.sizes,
            padding,
            self.activation,
            self.gate,
            self.expands,
            self.residual,
            self.bfloat16_products,
        )
        return out


def _channels_last(x: Tensor, channels: int, kernel_size: int, stride: int, padding: Padding) -> Tensor:
    height = output_size(x.shape[2], kernel_size, stride, padding[0] + padding[1])
    width = output_size(x.shape[3], kernel_size, stride, padding[2] + padding[3])
    size = (x.shape[0], channels, height, width)
    return x.new_empty(size).contiguous(memory_format=torch.channels_last)


def _fake_conv(
    x: Tensor,
    weights: Tensor,
    residual: Tensor | None,
    out_channels: int,
    kernel_size: int,
    stride: int,
    padding: Padding,
    *_rest: Any,
) -> Tensor:
    return _channels_last(x, out_channels, kernel_size, stride, padding)


def _fake_mbconv(
    x: Tensor,
    weights: Tensor,
    channels: int,
    out_channels: int,
    squeezed: int,
    kernel_size: int,
    stride: int,
    padding: Padding,
    *_rest: Any,
) -> Tensor:
    return _channels_last(x, out_channels, kernel_size, stride, padding)


register("conv_inference", _fake_conv)
register("mbconv_inference", _fake_mbconv)
