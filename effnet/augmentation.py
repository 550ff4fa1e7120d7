"""Random changes to a training picture, by name. Each draws from torch's default generator."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from PIL import Image
from torchvision.transforms import v2

from effnet.preprocessing import Preprocessing

Augmentation = Callable[[Image.Image], Image.Image]


def _none(preprocessing: Preprocessing) -> Augmentation:
    return preprocessing.square


def _affine(preprocessing: Preprocessing) -> Augmentation:
    """Small rotations, shifts, scalings and shears, and no flip: for characters, which a mirror changes."""
    moves = v2.RandomAffine(
        degrees=10,
        translate=(0.1, 0.1),
        scale=(0.9, 1.1),
        shear=5,
        interpolation=v2.InterpolationMode.BILINEAR,
    )
    return v2.Compose([preprocessing.square, moves])


def _crop_flip(preprocessing: Preprocessing) -> Augmentation:
    """Shifts of up to an eighth and mirrors: the custom for CIFAR and Fashion-MNIST."""
    crop = v2.RandomCrop(preprocessing.resolution, padding=preprocessing.resolution // 8)
    return v2.Compose([preprocessing.square, crop, v2.RandomHorizontalFlip()])


def _resized_crop(preprocessing: Preprocessing) -> Augmentation:
    """Crops of 8 to 100 % of the area, and mirrors: the custom for photos."""
    crop = v2.RandomResizedCrop(preprocessing.resolution, interpolation=v2.InterpolationMode.BICUBIC)
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


def _autoaugment(preprocessing: Preprocessing) -> Augmentation:
    """What the EfficientNet paper trains with (Cubuk et al. 2019, arXiv 1805.09501, the ImageNet policy)."""
    return v2.Compose([_resized_crop(preprocessing), v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)])


def _randaugment(preprocessing: Preprocessing) -> Augmentation:
    """What EfficientNetV2 trains with (Cubuk et al. 2020, arXiv 1909.13719)."""
    return v2.Compose([_resized_crop(preprocessing), v2.RandAugment()])


AUGMENTATIONS: Mapping[str, Callable[[Preprocessing], Augmentation]] = MappingProxyType(
    {
        "none": _none,
        "affine": _affine,
        "crop-flip": _crop_flip,
        "resized-crop": _resized_crop,
        "autoaugment": _autoaugment,
        "randaugment": _randaugment,
    }
)
"""Name → function from the preprocessing to the augmentation, which ends on a square of the network's resolution."""
