"""Fused depthwise-convolution, BatchNorm, activation and squeeze-and-excite operators for PyTorch."""

from effnet_kernels import reference
from effnet_kernels.arguments import BatchNorm, SqueezeExcite
from effnet_kernels.backend import backend_for, backends, prepare, set_backend
from effnet_kernels.memory import release_cached_memory
from effnet_kernels.ops import (
    batch_norm_act,
    depthwise_conv_bn_act,
    mbconv,
    mbconv_core,
    mbconv_core_unscaled,
    pointwise_conv,
    squeeze_excite,
)
from effnet_kernels.plan import plan

__version__ = "0.1.0"

prepare()

__all__ = [
    "BatchNorm",
    "SqueezeExcite",
    "backend_for",
    "backends",
    "batch_norm_act",
    "depthwise_conv_bn_act",
    "mbconv",
    "mbconv_core",
    "mbconv_core_unscaled",
    "plan",
    "pointwise_conv",
    "reference",
    "release_cached_memory",
    "set_backend",
    "squeeze_excite",
]
