"""How other libraries name the tensors of a network, as tables of layer names.

A layer is a convolution, a BatchNorm or the classifier; the tensors inside it (``weight``, ``running_mean`` …) have
the same names everywhere.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from effnet.model import EfficientNetFeatures

# A part of a network (stem, head, or what a block has) and the names of its two layers:
# convolution and BatchNorm, or, of squeeze-and-excite, reduction and expansion.
LayerPair = tuple[str, str]


@dataclass(frozen=True)
class BlockPosition:
    """Where a block sits, and which parts it has, in order of execution."""

    stage: int
    index: int
    number: int
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """One library's names. ``{last}`` in ``head`` stands for the number of stages plus one."""

    name: str
    stem: LayerPair
    head: LayerPair
    classifier: str
    block: Callable[[BlockPosition], Mapping[str, LayerPair]]


_OWN_LAYERS: Mapping[str, LayerPair] = MappingProxyType(
    {
        "expand": ("conv", "bn"),
        "depthwise": ("conv", "bn"),
        "squeeze_excite": ("reduce", "expand"),
        "project": ("conv", "bn"),
    }
)

_TIMM_BLOCKS: Mapping[tuple[str, ...], Mapping[str, LayerPair]] = MappingProxyType(
    {
        # InvertedResidual
        ("expand", "depthwise", "project"): {
            "expand": ("conv_pw", "bn1"),
            "depthwise": ("conv_dw", "bn2"),
            "squeeze_excite": ("se.conv_reduce", "se.conv_expand"),
            "project": ("conv_pwl", "bn3"),
        },
        # DepthwiseSeparableConv
        ("depthwise", "project"): {
            "depthwise": ("conv_dw", "bn1"),
            "squeeze_excite": ("se.conv_reduce", "se.conv_expand"),
            "project": ("conv_pw", "bn2"),
        },
        # EdgeResidual
        ("expand", "project"): {"expand": ("conv_exp", "bn1"), "project": ("conv_pwl", "bn2")},
        # ConvBnAct
        ("project",): {"project": ("conv", "bn1")},
    }
)

_EFFICIENTNET_PYTORCH_LAYERS: Mapping[str, LayerPair] = MappingProxyType(
    {
        "expand": ("_expand_conv", "_bn0"),
        "depthwise": ("_depthwise_conv", "_bn1"),
        "squeeze_excite": ("_se_reduce", "_se_expand"),
        "project": ("_project_conv", "_bn2"),
    }
)


def _prefixed(prefix: str, layers: Mapping[str, LayerPair]) -> dict[str, LayerPair]:
    return {part: (f"{prefix}.{first}", f"{prefix}.{second}") for part, (first, second) in layers.items()}


def _own_block(at: BlockPosition) -> dict[str, LayerPair]:
    layers = {part: (f"{part}.{first}", f"{part}.{second}") for part, (first, second) in _OWN_LAYERS.items()}
    return _prefixed(f"stages.{at.stage}.{at.index}", layers)


def _torchvision_block(at: BlockPosition) -> dict[str, LayerPair]:
    """torchvision numbers the parts a block has, without gaps."""
    if "depthwise" in at.parts and "squeeze_excite" not in at.parts:
        raise ValueError("torchvision has no MBConv without squeeze-and-excite, as EfficientNet-Lite needs it")
    prefix = f"features.{at.stage + 1}.{at.index}.block"
    layers = {}
    for number, part in enumerate(at.parts):
        first, second = ("fc1", "fc2") if part == "squeeze_excite" else ("0", "1")
        layers[part] = (f"{number}.{first}", f"{number}.{second}")
    return _prefixed(prefix, layers)


def _timm_block(at: BlockPosition) -> dict[str, LayerPair]:
    kind = tuple(part for part in at.parts if part != "squeeze_excite")
    return _prefixed(f"blocks.{at.stage}.{at.index}", _TIMM_BLOCKS[kind])


def _efficientnet_pytorch_block(at: BlockPosition) -> dict[str, LayerPair]:
    if "depthwise" not in at.parts:
        raise ValueError("efficientnet_pytorch has no Fused-MBConv, as EfficientNetV2 needs it")
    return _prefixed(f"_blocks.{at.number}", _EFFICIENTNET_PYTORCH_LAYERS)


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        layout.name: layout
        for layout in (
            Layout("effnet", ("stem.conv", "stem.bn"), ("head.conv", "head.bn"), "classifier", _own_block),
            Layout(
                "torchvision",
                ("features.0.0", "features.0.1"),
                ("features.{last}.0", "features.{last}.1"),
                "classifier.1",
                _torchvision_block,
            ),
            Layout("timm", ("conv_stem", "bn1"), ("conv_head", "bn2"), "classifier", _timm_block),
            Layout(
                "efficientnet_pytorch",
                ("_conv_stem", "_bn0"),
                ("_conv_head", "_bn1"),
                "_fc",
                _efficientnet_pytorch_block,
            ),
        )
    }
)
"""Every layout by name."""

_BATCH_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def tensor_names(model: "EfficientNetFeatures", layout: Layout) -> dict[str, str]:
    """The names of ``model``'s tensors, in the order of its state dict, mapped to those of ``layout``."""
    layers = dict(_layer_names(model, layout))
    names = {}
    for own in model.state_dict():
        layer, _, tensor = own.rpartition(".")
        names[own] = f"{layers[layer]}.{tensor}"
    return names


def head_names(model: "EfficientNetFeatures", layout: Layout) -> set[str]:
    """The names ``layout`` gives to head and classifier, whether or not ``model`` has them."""
    return _pair_names(_numbered(layout.head, model)) | classifier_names(layout)


def end_names(model: "EfficientNetFeatures", layout: Layout) -> set[str]:
    """The names ``layout`` gives to stem, head and classifier."""
    return _pair_names(layout.stem) | head_names(model, layout)


def classifier_names(layout: Layout) -> set[str]:
    """The names ``layout`` gives to the classifier."""
    return {f"{layout.classifier}.weight", f"{layout.classifier}.bias"}


def _pair_names(pair: LayerPair) -> set[str]:
    convolution, batch_norm = pair
    return {f"{convolution}.weight", *(f"{batch_norm}.{tensor}" for tensor in _BATCH_NORM_TENSORS)}


def _layer_names(model: "EfficientNetFeatures", layout: Layout) -> Iterator[tuple[str, str]]:
    """Every layer's name in ``model`` with its name in ``layout``."""
    own = LAYOUTS["effnet"]
    yield from zip(own.stem, layout.stem, strict=True)
    yield from zip(own.head, _numbered(layout.head, model), strict=True)
    yield own.classifier, layout.classifier
    for position in _positions(model):
        theirs = layout.block(position)
        for part, pair in own.block(position).items():
            if part in position.parts:
                yield from zip(pair, theirs[part], strict=True)


def _numbered(pair: LayerPair, model: "EfficientNetFeatures") -> LayerPair:
    last = len(model.stages) + 1
    first, second = (name.format(last=last) for name in pair)
    return first, second


def _positions(model: "EfficientNetFeatures") -> Iterator[BlockPosition]:
    number = 0
    for stage_index, stage in enumerate(model.stages):
        assert isinstance(stage, nn.Sequential)
        for index, block in enumerate(stage):
            present = dict(block.named_children())
            yield BlockPosition(stage_index, index, number, tuple(part for part in _OWN_LAYERS if part in present))
            number += 1
