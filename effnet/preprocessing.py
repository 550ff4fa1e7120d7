"""From a picture to a network's input, as a value that travels with the weights that expect it."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Square centre crop, bicubic resize, then (x − mean) / std on x from 0 to 1.

    Attributes:
        resolution: side of the square given to the network.
        crop: the crop's side as a fraction of the picture's shorter one.
        mean: per channel (R, G, B).
        std: per channel (R, G, B).
    """

    resolution: int
    crop: float = 1.0
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise ValueError(f"resolution: expected at least 1, got {self.resolution}")
        if not 0.0 < self.crop <= 1.0:
            raise ValueError(f"crop: expected a fraction above 0 and up to 1, got {self.crop}")
        if any(value <= 0.0 for value in self.std):
            raise ValueError(f"std: expected positive numbers, got {self.std}")

    def square(self, image: Image.Image) -> Image.Image:
        """The centre of ``image`` as a square of ``resolution``."""
        # Cropped before it is resized, or a long strip would become a huge picture first.
        side = min(image.size) * self.crop
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        return image.resize((self.resolution, self.resolution), Image.Resampling.BICUBIC, box=box)

    def normalise(self, image: Image.Image) -> Tensor:
        """An RGB ``image`` of any size as a normalised (3, H, W) float32 tensor."""
        pixels = F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True)
        return F.normalize(pixels, list(self.mean), list(self.std))

    def __call__(self, image: Image.Image) -> Tensor:
        """(3, resolution, resolution) float32 from an RGB ``image``."""
        return self.normalise(self.square(image))
