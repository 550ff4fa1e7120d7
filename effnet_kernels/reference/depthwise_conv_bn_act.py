"""act(BN(dwconv(x)))."""

import torch.nn.functional as F
from torch import Tensor

from effnet_kernels.arguments import BatchNorm, Padding
from effnet_kernels.reference.batch_norm_act import batch_norm_act


def depthwise_conv(x: Tensor, w: Tensor, stride: int, padding: Padding) -> Tensor:
    """Depthwise convolution with (top, bottom, left, right) padding."""
    top, bottom, left, right = padding
    w = w.to(x.dtype)
    if top == bottom and left == right:
        return F.conv2d(x, w, stride=stride, padding=(top, left), groups=x.shape[1])
    return F.conv2d(F.pad(x, (left, right, top, bottom)), w, stride=stride, groups=x.shape[1])


def depthwise_conv_bn_act(
    x: Tensor, w: Tensor, bn: BatchNorm, stride: int, padding: Padding, activation: str = "silu"
) -> Tensor:
    """act(BN(dwconv(x))); running statistics are updated in place when ``bn.training``."""
    return batch_norm_act(depthwise_conv(x, w, stride, padding), bn, activation)
