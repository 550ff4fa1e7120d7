"""The network: stem, stages, head and classifier, and ``create_model``."""

import math
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from effnet.arguments import check_bn_eps, check_count, check_flag, check_number, check_padding, check_rate
from effnet.blocks import ConvBNAct, LayerSettings, PaddedConv2d, PaddingRule, build_block
from effnet.config import TF_PREFIX, Variant, canonical_name, find_variant
from effnet.inference import prepared_linear, prepared_network
from effnet.switch import Switchable, check_fused
from effnet.weights import WeightsSource, fetch_weights, load_weights
from effnet_kernels import backend_for
from effnet_kernels.nn import synchronising_group

STRIDE = 32
"""How many pixels of the input one pixel of the last feature map stands for, along each axis."""


class EfficientNetFeatures(Switchable):
    """Stem and stages: what detectors and U-Nets build on.

    ``forward`` takes (N, in_channels, H, W) and returns the feature maps at strides 2, 4, 8, 16 and 32 (map sizes
    ⌈H / stride⌉ × ⌈W / stride⌉), each the output of the last block at its stride. ``feature_channels`` and
    ``feature_strides`` describe them.

    Source: Tan and Le 2019 (arXiv 1905.11946), table 1; Tan and Le 2021 (arXiv 2104.00298), table 4.
    """

    def __init__(self, variant: Variant, *, name: str, in_channels: int, padding: PaddingRule) -> None:
        super().__init__()
        self.variant = variant
        self.name = name
        self.in_channels = in_channels
        settings = LayerSettings(variant.activation, padding, variant.bn_eps, variant.bn_momentum)
        self._settings = settings
        stages = variant.blocks()
        self.stem = ConvBNAct(in_channels, variant.scaled_stem_channels, 3, settings, stride=2)
        total = sum(len(stage) for stage in stages)
        rates = iter(variant.drop_connect * index / total for index in range(total))
        self.stages = nn.Sequential(
            *(nn.Sequential(*(build_block(block, settings, next(rates)) for block in stage)) for stage in stages)
        )
        ends = [index for index, stage in enumerate(stages[1:]) if stage[0].stride == 2] + [len(stages) - 1]
        self._feature_stages = frozenset(ends)
        self.feature_channels = tuple(stages[end][-1].out_channels for end in ends)
        self.feature_strides = tuple(2 ** (level + 1) for level in range(len(ends)))

    @property
    def padding(self) -> PaddingRule:
        """``symmetric`` or ``same``, for every convolution."""
        return self._settings.padding

    @padding.setter
    def padding(self, rule: PaddingRule) -> None:
        check_padding(rule)
        self._settings = replace(self._settings, padding=rule)
        for module in self.modules():
            if isinstance(module, PaddedConv2d):
                module.rule = rule

    @property
    def bn_eps(self) -> float:
        """What every BatchNorm adds to the variance."""
        return self._settings.bn_eps

    @bn_eps.setter
    def bn_eps(self, eps: float) -> None:
        check_bn_eps(eps)
        self._settings = replace(self._settings, bn_eps=float(eps))
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eps = float(eps)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """The feature maps of (N, in_channels, H, W), finest first.

        Raises:
            TypeError: ``x`` is no floating tensor.
            ValueError: ``x`` has the wrong shape, or is too small to train on.
        """
        self._check_input(x)
        features = []
        x = self.stem_features(x)
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self._feature_stages:
                features.append(x)
        return features

    def forward(self, x: Tensor) -> Any:
        return self.forward_features(x)

    def stem_features(self, x: Tensor) -> Tensor:
        """The stem's output for an input of any layout, in the one that the blocks are fastest in.

        On the CPU's kernels that is channels_last: an image has few channels, so that no later conversion is as cheap.
        """
        if not self.runs_fused or backend_for(x.device, x.dtype) != "cpu":
            return cast(Tensor, self.stem(x))
        out: Tensor = self.stem(x.contiguous(memory_format=torch.channels_last))
        # A single channel is in both layouts, and what a convolution then returns is its own choice.
        return out.contiguous(memory_format=torch.channels_last)

    def _check_input(self, x: Tensor) -> None:
        expected = f"(N, {self.in_channels}, H, W)"
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a Tensor of shape {expected}, got {type(x).__name__}")
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x: expected shape {expected}, got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x: expected a floating dtype (normalised images), got {x.dtype}")
        batch, _, height, width = x.shape
        if height == 0 or width == 0:
            raise ValueError(f"x: expected H and W of at least 1, got shape {tuple(x.shape)}")
        if batch != 1 or height > STRIDE or width > STRIDE:
            return
        last = self.stages[-1][-1].project.bn  # type: ignore[index]
        if last.training and synchronising_group(last) is None:
            raise ValueError(
                "x: expected more than 1 value per channel in the last feature map when training (a batch above 1 or "
                f"a side above {STRIDE}), got shape {tuple(x.shape)}"
            )


class EfficientNet(EfficientNetFeatures):
    """An EfficientNet classifier: (N, in_channels, H, W) to logits of (N, num_classes).

    Source: Tan and Le 2019 (arXiv 1905.11946), table 1; Tan and Le 2021 (arXiv 2104.00298), table 4.
    """

    def __init__(
        self, variant: Variant, *, name: str, num_classes: int, in_channels: int, padding: PaddingRule
    ) -> None:
        super().__init__(variant, name=name, in_channels=in_channels, padding=padding)
        self.num_classes = num_classes
        self.dropout = variant.dropout
        channels = variant.scaled_head_channels
        self.head = ConvBNAct(self.feature_channels[-1], channels, 1, self._settings)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        network = prepared_network(self, x)
        if network is not None:
            return network(x)
        x = self.head(self.stages(self.stem_features(x)))
        pooled = F.dropout(F.adaptive_avg_pool2d(x, 1), self.dropout, self.training)
        classifier = prepared_linear(self.classifier, pooled, fused=self.runs_fused)
        if classifier is not None:
            return classifier(pooled, (0, 0, 0, 0)).flatten(1)
        return cast(Tensor, self.classifier(pooled.flatten(1)))


def initialise(model: nn.Module) -> None:
    """Draw fresh weights: normal with variance 2 / fan-out for convolutions, uniform for the classifier.

    Fan-out is k² · out_channels / groups, so that a depthwise convolution's is k², and the classifier's bound is
    1 / √num_classes; biases are 0, BatchNorm is 1 and 0.

    Source: ``conv_kernel_initializer`` and ``dense_kernel_initializer`` of the TensorFlow code of Tan and Le 2019
    (arXiv 1905.11946); torchvision's differ in the depthwise fan-out only.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = 1.0 / math.sqrt(module.out_features)
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)


def create_model(
    name: str | Variant,
    num_classes: int = 1000,
    in_channels: int = 3,
    weights: WeightsSource | None = None,
    fused: bool | None = None,
    padding: PaddingRule | None = None,
    bn_eps: float | None = None,
    bn_momentum: float | None = None,
    dropout: float | None = None,
    drop_connect: float | None = None,
    features_only: bool = False,
) -> EfficientNet | EfficientNetFeatures:
    """Build a network of the family, with fresh or given weights.

    Args:
        name: one of ``effnet.list_models()``; torchvision's ``efficientnet_v2_s`` and the like; any of them with the
            prefix ``tf_``, which means SAME padding and eps 1e-3 as in timm; or a :class:`Variant` of one's own.
        num_classes: outputs of the classifier; without meaning where ``features_only``.
        in_channels: channels of the input.
        weights: a ``.pth``, ``.pt`` or ``.safetensors`` file or a state dict, as :func:`effnet.load_weights` takes
            them; or ``"torchvision"`` or ``"timm"``, fetched through that library. The weights decide padding and
            eps, unless these are given here.
        fused: True or False for this network whatever ``effnet.fused`` says, None to follow it.
        padding: ``symmetric`` or ``same``; by default what the name implies.
        bn_eps, bn_momentum: BatchNorm's; by default the variant's.
        dropout: rate before the classifier; by default the variant's.
        drop_connect: rate of the deepest block, growing linearly from 0; by default 0.2.
        features_only: return the feature pyramid (:class:`EfficientNetFeatures`) instead of logits; there is then
            neither head nor classifier, and those of ``weights`` are left out.

    Returns:
        An :class:`EfficientNet`, or an :class:`EfficientNetFeatures` where ``features_only``.

    Raises:
        TypeError, ValueError: an argument is not what is expected, or ``weights`` do not fit.
        ImportError: ``weights`` need a library that is not installed.
    """
    check_count("num_classes", num_classes)
    check_count("in_channels", in_channels)
    check_fused(fused, optional=True)
    check_flag("features_only", features_only)
    variant, full_name = _resolve(name)
    variant = _customised(variant, bn_eps, bn_momentum, dropout, drop_connect)
    if padding is not None:
        check_padding(padding)
    rule = padding or ("same" if full_name.startswith(TF_PREFIX) else "symmetric")
    fetched = fetch_weights(weights, full_name) if weights is not None else None

    model: EfficientNet | EfficientNetFeatures
    if features_only:
        model = EfficientNetFeatures(variant, name=full_name, in_channels=in_channels, padding=rule)
    else:
        model = EfficientNet(variant, name=full_name, num_classes=num_classes, in_channels=in_channels, padding=rule)
    model.fused = fused
    if fetched is None:
        initialise(model)
        return model
    load_weights(model, fetched)
    if padding is not None:
        model.padding = padding
    if bn_eps is not None:
        model.bn_eps = bn_eps
    return model


def _resolve(name: str | Variant) -> tuple[Variant, str]:
    """The row and the full name, ``tf_`` included, of what ``create_model`` was given."""
    if isinstance(name, Variant):
        return name, name.name
    if not isinstance(name, str):
        raise TypeError(f"name: expected a string or a Variant, got {type(name).__name__}")
    return find_variant(name), canonical_name(name)


def _customised(
    variant: Variant,
    bn_eps: float | None,
    bn_momentum: float | None,
    dropout: float | None,
    drop_connect: float | None,
) -> Variant:
    """``variant`` with the settings that are given, checked."""
    if bn_eps is not None:
        check_bn_eps(bn_eps)
        variant = replace(variant, bn_eps=float(bn_eps))
    if bn_momentum is not None:
        check_number("bn_momentum", bn_momentum, "a number from 0 to 1", 0.0, 1.0)
        variant = replace(variant, bn_momentum=float(bn_momentum))
    if dropout is not None:
        check_rate("dropout", dropout)
        variant = replace(variant, dropout=float(dropout))
    if drop_connect is not None:
        check_rate("drop_connect", drop_connect)
        variant = replace(variant, drop_connect=float(drop_connect))
    return variant
