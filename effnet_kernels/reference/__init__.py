"""The operators' definitions in plain PyTorch: differentiable, on any device, what every kernel is checked against."""

from effnet_kernels.reference.batch_norm_act import batch_norm_act
from effnet_kernels.reference.depthwise_conv_bn_act import depthwise_conv, depthwise_conv_bn_act
from effnet_kernels.reference.mbconv_core import mbconv_core
from effnet_kernels.reference.squeeze_excite import excitation, squeeze_excite

__all__ = [
    "batch_norm_act",
    "depthwise_conv",
    "depthwise_conv_bn_act",
    "excitation",
    "mbconv_core",
    "squeeze_excite",
]
