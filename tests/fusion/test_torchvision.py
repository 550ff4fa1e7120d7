"""torchvision's networks, fused, against themselves."""

import pytest
import torch
import torchvision
from torchvision.models import efficientnet

from fusion.networks import check_fusing, images

NETWORKS = {
    "efficientnet_b0": {"mbconv": 16, "batch_norm_act": 18},
    "mnasnet0_5": {"mbconv": 16, "mbconv_core": 1, "batch_norm_act": 18},
    "mobilenet_v2": {"mbconv": 17, "batch_norm_act": 19},
    "mobilenet_v3_small": {"mbconv": 3, "mbconv_core": 8, "squeeze_excite": 8, "batch_norm_act": 13},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    torch.manual_seed(0)
    report = check_fusing(torchvision.models.get_model(name, num_classes=5), images(2, 3, 48, 40))
    assert report.counts() == NETWORKS[name]
    assert report.left == ()


def test_efficientnet_v2() -> None:
    """The blocks of EfficientNetV2, fewer and narrower."""
    torch.manual_seed(0)
    fused, mbconv = efficientnet.FusedMBConvConfig, efficientnet.MBConvConfig
    stages = [fused(1, 3, 1, 8, 8, 2), fused(4, 3, 2, 8, 16, 2), mbconv(4, 3, 2, 16, 24, 2), mbconv(6, 3, 1, 24, 32, 1)]
    model = efficientnet.EfficientNet(stages, dropout=0.0, stochastic_depth_prob=0.3, num_classes=5, last_channel=32)
    report = check_fusing(model, images(3, 3, 32, 32))
    assert report.counts() == {"mbconv": 3, "batch_norm_act": 2 + 2 + 2 * 2 + 3}
    assert report.left == ()


def test_dilated_blocks_are_left() -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model("mobilenet_v3_small", num_classes=5, dilated=True)
    report = check_fusing(model, images(2, 3, 48, 48))
    assert {left.reason for left in report.left} == {"dilation (2, 2)"}
    assert len(report.left) == 3
