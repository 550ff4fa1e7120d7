"""SE(act(BN2(dwconv(act(BN1(u)))))): MBConv's middle, between its two 1×1 convolutions."""

from torch import Tensor

from effnet_kernels.arguments import BatchNorm, Padding, SqueezeExcite
from effnet_kernels.reference.batch_norm_act import batch_norm_act
from effnet_kernels.reference.depthwise_conv_bn_act import depthwise_conv_bn_act
from effnet_kernels.reference.squeeze_excite import squeeze_excite


def mbconv_core(
    u: Tensor,
    w: Tensor,
    bn2: BatchNorm,
    bn1: BatchNorm | None,
    se: SqueezeExcite | None,
    stride: int,
    padding: Padding,
    activation: str = "silu",
    gate: str = "sigmoid",
) -> Tensor:
    """SE(act(BN2(dwconv(act(BN1(u)))))), without BN1 where ``bn1`` is None and without SE where ``se`` is None."""
    a = u if bn1 is None else batch_norm_act(u, bn1, activation)
    z = depthwise_conv_bn_act(a, w, bn2, stride, padding, activation)
    return z if se is None else squeeze_excite(z, se, activation, gate)
