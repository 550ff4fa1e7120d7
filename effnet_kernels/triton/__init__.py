"""The operators as Triton kernels, under the compiled ones' names and schemas in a namespace of their own.

Imported where they serve calls (effnet_kernels/backend.py), for importing Triton takes its time. Each is a
``torch.library.triton_op``, into which torch.compile sees; in Triton's interpreter, which it cannot trace, a plain
custom operator.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from effnet_kernels.ops.registration import HALVES, TRITON_NAMESPACE, register_autograd
from effnet_kernels.triton import batch_norm_act, depthwise_conv_bn_act, mbconv_core, squeeze_excite, statistics
from effnet_kernels.triton.launch import INTERPRETED

IMPLEMENTATIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "update_running_stats_": statistics.update_running_stats_,
        "batch_norm_act": batch_norm_act.forward,
        "batch_norm_act_backward": batch_norm_act.backward,
        "depthwise_conv_bn_act": depthwise_conv_bn_act.forward,
        "depthwise_conv_bn_act_inference": depthwise_conv_bn_act.inference,
        "depthwise_conv_bn_act_backward": depthwise_conv_bn_act.backward,
        "squeeze_excite": squeeze_excite.forward,
        "squeeze_excite_backward": squeeze_excite.backward,
        "mbconv_core": mbconv_core.forward,
        "mbconv_core_inference": mbconv_core.inference,
        "mbconv_core_backward": mbconv_core.backward,
    }
)

_MUTATES = MappingProxyType({"update_running_stats_": ("running_mean", "running_var")})


def _define(name: str) -> None:
    """Define the operator ``name`` with its fake, where its kernels cannot be traced, and its backward."""
    library, qualified = torch.library, f"{TRITON_NAMESPACE}::{name}"
    implementation, mutates = IMPLEMENTATIONS[name], _MUTATES.get(name, ())
    if INTERPRETED:
        operator = library.custom_op(qualified, implementation, mutates_args=mutates)
        operator.register_fake(HALVES[name].fake)
    else:
        library.triton_op(qualified, implementation, mutates_args=mutates)
    register_autograd(TRITON_NAMESPACE, name)


for _name in IMPLEMENTATIONS:
    _define(_name)
