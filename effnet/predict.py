"""Classifying pictures with weights from a file, preprocessed as those weights expect."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

import effnet
from effnet.config import ALIASES, TF_PREFIX, canonical_name, find_variant
from effnet.errors import OptionError
from effnet.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Triple
from effnet.result import read_labels
from effnet.weights import fetch_weights
from effnet.weights.files import StateDict, read_state_dict
from effnet.weights.names import LAYOUTS, Layout

# The authors' evaluation crops 224 pixels out of 256.
USUAL_CROP = 0.875
# EfficientNet-Lite's integer-friendly (x − 127) / 128.
LITE_MEAN = (127 / 255,) * 3
LITE_STD = (128 / 255,) * 3


@dataclass(frozen=True)
class Guess:
    """One class and its probability."""

    name: str
    probability: float


class Predictor:
    """A network in evaluation mode, with its preprocessing and the names of its classes."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, classes: Sequence[str]) -> None:
        self.model = model.eval()
        self.preprocessing = preprocessing
        self.classes = tuple(classes)

    @torch.inference_mode()
    def logits(self, image: Image.Image) -> Tensor:
        """(num_classes,) for one RGB picture."""
        return self.model(self.preprocessing(image).unsqueeze(0))[0]

    def guesses(self, image: Image.Image, top: int = 5) -> list[Guess]:
        """The likeliest ``top`` classes of one RGB picture, best first."""
        probabilities, indices = self.logits(image).float().softmax(0).topk(min(top, len(self.classes)))
        return [
            Guess(self.classes[int(index)], float(probability))
            for probability, index in zip(probabilities, indices, strict=True)
        ]


def load_predictor(
    weights: Path | str,
    *,
    model: str | None = None,
    source: str | None = None,
    resolution: int | None = None,
    fused: bool = True,
) -> Predictor:
    """A predictor from ``weights``: a file, or ``torchvision`` or ``timm`` to fetch them.

    A file from ``effnet train`` says itself which network, classes and preprocessing it is for. For others ``model``
    names the network, 1000 classes are ImageNet's, and the preprocessing is that of the weights' origin
    (:func:`preprocessing_of`).

    Raises:
        OptionError: ``model`` is missing or unknown, or the weights cannot be read or do not fit.
        ImportError: ``weights`` name a library that is not installed.
    """
    try:
        labels = read_labels(Path(weights)) if Path(weights).is_file() else None
        name = canonical_name(_model_name(model, None if labels is None else labels.model))
        tensors = read_state_dict(fetch_weights(weights, name))
        layout = layout_of(tensors)
        num_classes = len(tensors[f"{layout.classifier}.bias"])
        network = effnet.create_model(name, num_classes=num_classes, fused=fused)
        effnet.load_weights(network, tensors, source)
    except OptionError:
        raise
    except (OSError, TypeError, ValueError, LookupError) as error:
        # LookupError is what torch's unpickler may end on in a file cut short.
        raise OptionError("weights", "weights that can be read and fit the model", str(error)) from error
    if labels is not None:
        preprocessing, classes = labels.preprocessing, labels.classes
    else:
        preprocessing, classes = preprocessing_of(layout.name, name, source), class_names(num_classes)
    if resolution is not None:
        preprocessing = replace(preprocessing, resolution=resolution)
    return Predictor(network, preprocessing, classes)


def _model_name(given: str | None, written: str | None) -> str:
    if given is None and written is None:
        raise OptionError("model", "a name, as the weights carry none", "nothing")
    name = given or written or ""
    try:
        find_variant(name)
    except ValueError as error:
        raise OptionError("model", "a name that `effnet info` lists", repr(name)) from error
    return name


def layout_of(tensors: StateDict) -> Layout:
    """Whose names ``tensors`` have, told by the stem's.

    Raises:
        ValueError: nobody's that are known.
    """
    for layout in LAYOUTS.values():
        stem_convolution, _ = layout.stem
        if f"{stem_convolution}.weight" in tensors and f"{layout.classifier}.bias" in tensors:
            return layout
    sample = ", ".join(list(tensors)[:3]) or "no tensors at all"
    raise ValueError(f"expected a classifier's tensors as one of {', '.join(LAYOUTS)} names them, got {sample} …")


def class_names(num_classes: int) -> tuple[str, ...]:
    """ImageNet's names for 1000 classes, numbers for any other count."""
    if num_classes == 1000:
        from torchvision.models import EfficientNet_B0_Weights

        return tuple(EfficientNet_B0_Weights.DEFAULT.meta["categories"])
    return tuple(f"class {index}" for index in range(num_classes))


def preprocessing_of(origin: str, name: str, source: str | None = None) -> Preprocessing:
    """How pictures were prepared for the published weights of ``name``.

    Args:
        origin: whose names the tensors have, a key of ``effnet.weights.names.LAYOUTS``.
        name: of the model.
        source: as ``effnet.load_weights`` takes it; ``tf`` marks timm's ports of TensorFlow's weights.
    """
    resolution = find_variant(name).resolution
    plain = name.removeprefix(TF_PREFIX)
    if origin == "efficientnet_pytorch" and "_lite" in plain:
        return Preprocessing(resolution, 1.0, LITE_MEAN, LITE_STD)
    if origin == "torchvision":
        return _torchvision_preprocessing(plain, resolution)
    if origin == "timm":
        return _timm_preprocessing(f"{TF_PREFIX}{plain}" if source == "tf" else name, resolution)
    return Preprocessing(resolution, USUAL_CROP, IMAGENET_MEAN, IMAGENET_STD)


def _torchvision_preprocessing(name: str, resolution: int) -> Preprocessing:
    from torchvision import models

    spelling = {ours: theirs for theirs, ours in ALIASES.items()}.get(name, name)
    if spelling not in models.list_models():
        return Preprocessing(resolution, USUAL_CROP)
    transforms = models.get_model_weights(spelling).DEFAULT.transforms()
    (crop,), (resize,) = transforms.crop_size, transforms.resize_size
    return Preprocessing(crop, crop / resize, _triple(transforms.mean), _triple(transforms.std))


def _timm_preprocessing(name: str, resolution: int) -> Preprocessing:
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name, allow_unregistered=True)
    if config is None:
        return Preprocessing(resolution, USUAL_CROP)
    size = config.test_input_size or config.input_size
    crop = config.test_crop_pct or config.crop_pct
    return Preprocessing(size[1], crop, _triple(config.mean), _triple(config.std))


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = values
    return (red, green, blue)
