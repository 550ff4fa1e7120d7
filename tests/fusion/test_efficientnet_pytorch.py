"""``efficientnet_pytorch``, ``efficientnet_lite_pytorch`` and ``segmentation_models_pytorch``, against themselves."""

import importlib

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

import effnet
from fusion.networks import check_fusing, images


@pytest.mark.parametrize("size", [None, 48], ids=("any_size", "one_size"))
def test_efficientnet_pytorch(size: int | None) -> None:
    """SAME padding computed for every image, or for one size; drop-connect as an argument of the blocks."""
    torch.manual_seed(0)
    package = importlib.import_module("efficientnet_pytorch")
    model = package.EfficientNet.from_name("efficientnet-b0", image_size=size, num_classes=5)
    report = check_fusing(model, images(2, 3, size, size) if size else images(2, 3, 51, 34))
    assert report.counts() == {"mbconv": 16, "batch_norm_act": 16}
    stem_and_head = [(left.name, left.reason) for left in report.left]
    assert stem_and_head == [(name, "in EfficientNet, whose forward is not known") for name in ("_bn0", "_bn1")]


def test_efficientnet_lite_pytorch() -> None:
    torch.manual_seed(0)
    package = importlib.import_module("efficientnet_lite_pytorch")
    report = check_fusing(package.EfficientNet.from_name("efficientnet-lite0"), images(2, 3, 64, 32))
    assert report.counts() == {"mbconv": 16, "batch_norm_act": 16}


def encoder(name: str, **settings: int) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = smp.encoders.get_encoder(name, weights=None, **settings)
    return made


ENCODERS = {
    "efficientnet-b0": {"mbconv": 16, "batch_norm_act": 16},
    "mobilenet_v2": {"mbconv": 17, "batch_norm_act": 19},
    "timm-efficientnet-b0": {"mbconv": 16, "batch_norm_act": 18},
    "tu-tf_mobilenetv3_small_minimal_100": {"mbconv": 11, "batch_norm_act": 12},
}


def pyramid(features: object) -> Tensor:
    assert isinstance(features, list)
    return torch.cat([feature.flatten(1) for feature in features], 1)


@pytest.mark.filterwarnings("ignore:`timm-` encoders are deprecated")
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name: str) -> None:
    report = check_fusing(encoder(name), images(2, 3, 48, 40), pyramid)
    assert report.counts() == ENCODERS[name]


def test_dilated_encoders() -> None:
    """Where strides became dilation, depthwise convolutions are left, not wrongly padded."""
    report = check_fusing(encoder("efficientnet-b0", output_stride=16), images(2, 3, 32, 48), pyramid)
    assert report.counts() == {"mbconv": 9, "squeeze_excite": 7, "batch_norm_act": 30}
    assert sum(left.reason == "dilation (2, 2)" for left in report.left) == 7


def test_a_whole_segmentation_network() -> None:
    torch.manual_seed(0)
    model = smp.Unet("mobilenet_v2", encoder_weights=None, decoder_channels=(16, 8, 8, 8, 8))
    report = check_fusing(model, images(2, 3, 64, 32))
    assert report.counts() == {"mbconv": 17, "batch_norm_act": 19}
    assert all(left.reason == "in Conv2dReLU, whose forward is not known" for left in report.left)
    assert effnet.fuse(model).counts() == report.counts()
