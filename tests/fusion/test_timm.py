"""timm's networks, fused, against themselves."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from fusion.networks import check_fusing, images

NETWORKS = {
    "efficientnet_b0": {"mbconv": 16, "batch_norm_act": 18},
    "efficientnet_blur_b0": {"mbconv": 12, "mbconv_core": 4, "squeeze_excite": 4, "batch_norm_act": 18},
    "efficientnet_lite0": {"mbconv": 16, "batch_norm_act": 18},
    "fbnetc_100": {"mbconv": 21, "batch_norm_act": 23},
    "mnasnet_small": {"mbconv": 15, "batch_norm_act": 17},
    "mobilenetv2_035": {"mbconv": 17, "batch_norm_act": 19},
    "mobilenetv3_small_050": {"mbconv": 3, "mbconv_core": 8, "squeeze_excite": 8, "batch_norm_act": 13},
    "mobilenetv4_conv_small_050": {"mbconv": 12, "mbconv_core": 3, "batch_norm_act": 20},
    "test_efficientnet": {"mbconv": 2, "batch_norm_act": 9},
    "tf_efficientnetv2_b0": {"mbconv": 16, "batch_norm_act": 27},
    "tf_mobilenetv3_small_minimal_100": {"mbconv": 11, "batch_norm_act": 13},
}


def create(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=5, **settings)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    """With drop-connect, whose random numbers are the same; every block's middle is fused, and nothing is left."""
    report = check_fusing(create(name, drop_path_rate=0.2), images(2, 3, 48, 40))
    assert report.counts() == NETWORKS[name]
    assert report.left == ()


def test_channels_last_and_same_padding() -> None:
    model = create("tf_efficientnet_b0", drop_path_rate=0.2).to(memory_format=torch.channels_last)
    report = check_fusing(model, images(2, 3, 34, 48).contiguous(memory_format=torch.channels_last))
    assert report.counts() == {"mbconv": 16, "batch_norm_act": 18}
    assert report.left == ()


def test_squeeze_excite_with_a_batch_norm_inside_is_left() -> None:
    """ReXNet: depthwise convolution and BatchNorm without activation, squeeze-and-excite before it."""
    report = check_fusing(create("rexnet_100"), images(2, 3, 48, 48))
    assert report.counts() == {"depthwise_conv_bn_act": 16, "batch_norm_act": 33}
    assert [left.reason for left in report.left] == 13 * ["BatchNorm2d between its layers"]


def test_other_norms_are_left() -> None:
    report = check_fusing(create("test_efficientnet_evos"), images(2, 3, 32, 32))
    assert report.counts() == {"squeeze_excite": 2}
    assert [left.name for left in report.left] == ["blocks.3.0.conv_dw", "blocks.4.0.conv_dw"]
    assert {left.reason for left in report.left} == {
        "followed by EvoNorm2dS0: EvoNorm2dS0 is not a BatchNorm that is known"
    }


def test_mixed_convolutions_are_left() -> None:
    report = check_fusing(create("mixnet_s"), images(2, 3, 48, 48))
    assert report.counts() == {"mbconv": 1, "mbconv_core": 2, "squeeze_excite": 13, "batch_norm_act": 44}
    assert {left.reason for left in report.left} == {
        "in MixedConv2d, whose forward is not known",
        "kernel 9×9",
        "kernel 11×11",
    }


def test_feature_pyramids() -> None:
    """timm takes features with hooks on the inner convolutions: patterns end there, and the hooks are called."""
    model = create("mobilenetv2_035", features_only=True, feature_location="expansion")
    report = check_fusing(model, images(2, 3, 64, 64), lambda out: torch.cat([f.flatten(1) for f in out], 1))
    hooked = [name for name, m in model.named_modules() if m._forward_pre_hooks]
    assert [name.rpartition(".")[2] for name in hooked] == ["conv_pw", *4 * ["conv_pwl"]]
    assert report.counts() == {"mbconv": 12, "mbconv_core": 4, "depthwise_conv_bn_act": 1, "batch_norm_act": 18}
