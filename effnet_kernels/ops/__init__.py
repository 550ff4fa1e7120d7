"""The public operators: argument checks, autocast, backend choice, and each compiled operator's fake and backward."""

from effnet_kernels.ops.batch_norm_act import batch_norm_act
from effnet_kernels.ops.depthwise_conv_bn_act import depthwise_conv_bn_act
from effnet_kernels.ops.mbconv import mbconv
from effnet_kernels.ops.mbconv_core import mbconv_core, mbconv_core_unscaled
from effnet_kernels.ops.pointwise_conv import pointwise_conv
from effnet_kernels.ops.prepared import PreparedConv, PreparedMBConv
from effnet_kernels.ops.prepared_network import NetworkLayer, PreparedNetwork
from effnet_kernels.ops.squeeze_excite import squeeze_excite

__all__ = [
    "NetworkLayer",
    "PreparedConv",
    "PreparedMBConv",
    "PreparedNetwork",
    "batch_norm_act",
    "depthwise_conv_bn_act",
    "mbconv",
    "mbconv_core",
    "mbconv_core_unscaled",
    "pointwise_conv",
    "squeeze_excite",
]
