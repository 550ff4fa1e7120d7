"""The variants of EfficientNet as rows of a table, and the rules that scale one into another."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, NamedTuple

Kind = Literal["mbconv", "fused_mbconv"]

_CHANNEL_DIVISOR = 8


@dataclass(frozen=True)
class Stage:
    """A run of equal blocks before scaling; only its first block has ``stride`` and changes the channels."""

    kind: Kind
    kernel_size: int
    stride: int
    expand_ratio: int
    channels: int
    repeats: int


@dataclass(frozen=True)
class BlockConfig:
    """One block after scaling. ``squeezed_channels`` is 0 where there is no squeeze-and-excite."""

    kind: Kind
    kernel_size: int
    stride: int
    expand_ratio: int
    in_channels: int
    out_channels: int
    squeezed_channels: int

    @property
    def expanded_channels(self) -> int:
        return self.in_channels * self.expand_ratio

    @property
    def has_skip(self) -> bool:
        return self.stride == 1 and self.in_channels == self.out_channels


@dataclass(frozen=True)
class Variant:
    """A row of the table: everything that distinguishes one member of the family.

    ``resolution`` is the side of the square image it is evaluated at; ``macs_resolution`` the side its published
    multiply-adds are counted at, where that differs (timm's ports of Lite3 and Lite4 take larger images). ``bn_eps``
    and ``bn_momentum`` are torchvision's, and for the variants it lacks those of the nearest it has. ``fixed_ends`` is
    EfficientNet-Lite's rule: width and depth scale neither stem and head nor the first and last stage's repeats.
    """

    name: str
    stages: tuple[Stage, ...]
    width: float
    depth: float
    resolution: int
    dropout: float
    stem_channels: int = 32
    head_channels: int = 1280
    activation: str = "silu"
    squeeze_ratio: float = 0.25
    fixed_ends: bool = False
    drop_connect: float = 0.2
    bn_eps: float = 1e-5
    bn_momentum: float = 0.1
    timm_resolution: int | None = None

    @property
    def macs_resolution(self) -> int:
        return self.timm_resolution or self.resolution

    @property
    def scaled_stem_channels(self) -> int:
        return self.stem_channels if self.fixed_ends else round_channels(self.stem_channels, self.width)

    @property
    def scaled_head_channels(self) -> int:
        return self.head_channels if self.fixed_ends else round_channels(self.head_channels, self.width)

    def blocks(self) -> tuple[tuple[BlockConfig, ...], ...]:
        """Every block of every stage, with width and depth applied."""
        last = len(self.stages) - 1
        in_channels = self.scaled_stem_channels
        stages = []
        for index, stage in enumerate(self.stages):
            fixed = self.fixed_ends and index in (0, last)
            repeats = stage.repeats if fixed else round_repeats(stage.repeats, self.depth)
            out_channels = round_channels(stage.channels, self.width)
            first = self._block(stage, stage.stride, in_channels, out_channels)
            rest = self._block(stage, 1, out_channels, out_channels)
            stages.append((first, *(rest,) * (repeats - 1)))
            in_channels = out_channels
        return tuple(stages)

    def _block(self, stage: Stage, stride: int, in_channels: int, out_channels: int) -> BlockConfig:
        squeezes = self.squeeze_ratio > 0 and stage.kind == "mbconv"
        squeezed = max(1, int(in_channels * self.squeeze_ratio)) if squeezes else 0
        return BlockConfig(
            stage.kind, stage.kernel_size, stride, stage.expand_ratio, in_channels, out_channels, squeezed
        )


class Scaling(NamedTuple):
    """Multipliers of channels, of repeats and of the image's side."""

    width: float
    depth: float
    resolution: float


def round_channels(channels: int, width: float) -> int:
    """``channels`` · ``width`` to the nearest multiple of 8, and up where that would lose more than 10 %.

    Source: ``round_filters`` of the TensorFlow code of Tan and Le 2019 (arXiv 1905.11946).
    """
    scaled = channels * width
    rounded = max(_CHANNEL_DIVISOR, int(scaled + _CHANNEL_DIVISOR / 2) // _CHANNEL_DIVISOR * _CHANNEL_DIVISOR)
    return rounded if rounded >= 0.9 * scaled else rounded + _CHANNEL_DIVISOR


def round_repeats(repeats: int, depth: float) -> int:
    """``repeats`` · ``depth``, rounded up."""
    return math.ceil(repeats * depth)


def compound_scaling(phi: float, *, alpha: float = 1.2, beta: float = 1.1, gamma: float = 1.15) -> Scaling:
    """Width β^φ, depth α^φ and resolution γ^φ: about 2^φ times the work, since α·β²·γ² ≈ 2.

    Raises:
        ValueError: ``phi`` is not finite, or a base is not positive.

    Source: Tan and Le 2019 (arXiv 1905.11946), section 3.3, equation 3.
    """
    if not math.isfinite(phi):
        raise ValueError(f"phi: expected a finite number, got {phi}")
    for name, base in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
        if not (math.isfinite(base) and base > 0):
            raise ValueError(f"{name}: expected a positive number, got {base}")
    return Scaling(width=beta**phi, depth=alpha**phi, resolution=gamma**phi)


def scaled_variant(
    phi: float,
    *,
    base: str = "efficientnet_b0",
    alpha: float = 1.2,
    beta: float = 1.1,
    gamma: float = 1.15,
    name: str | None = None,
) -> Variant:
    """A variant of one's own, ``base`` scaled by :func:`compound_scaling`; ``effnet.create_model`` takes it as a name.

    The published B1–B7 use the rounded coefficients of the table rather than the formula.

    Raises:
        ValueError: an unknown ``base``, or numbers that :func:`compound_scaling` refuses.
    """
    if base not in VARIANTS:
        raise ValueError(f"base: expected one of {', '.join(VARIANTS)}, got {base!r}")
    row = VARIANTS[base]
    scaling = compound_scaling(phi, alpha=alpha, beta=beta, gamma=gamma)
    return replace(
        row,
        name=name or f"{base}_phi{phi:g}",
        width=row.width * scaling.width,
        depth=row.depth * scaling.depth,
        resolution=round(row.resolution * scaling.resolution),
    )


# Tan and Le 2019 (arXiv 1905.11946), table 1.
_V1_STAGES = (
    Stage("mbconv", 3, 1, 1, 16, 1),
    Stage("mbconv", 3, 2, 6, 24, 2),
    Stage("mbconv", 5, 2, 6, 40, 2),
    Stage("mbconv", 3, 2, 6, 80, 3),
    Stage("mbconv", 5, 1, 6, 112, 3),
    Stage("mbconv", 5, 2, 6, 192, 4),
    Stage("mbconv", 3, 1, 6, 320, 1),
)

# Tan and Le 2021 (arXiv 2104.00298), table 4, and the authors' code for M, L and XL.
_V2_S_STAGES = (
    Stage("fused_mbconv", 3, 1, 1, 24, 2),
    Stage("fused_mbconv", 3, 2, 4, 48, 4),
    Stage("fused_mbconv", 3, 2, 4, 64, 4),
    Stage("mbconv", 3, 2, 4, 128, 6),
    Stage("mbconv", 3, 1, 6, 160, 9),
    Stage("mbconv", 3, 2, 6, 256, 15),
)
_V2_M_STAGES = (
    Stage("fused_mbconv", 3, 1, 1, 24, 3),
    Stage("fused_mbconv", 3, 2, 4, 48, 5),
    Stage("fused_mbconv", 3, 2, 4, 80, 5),
    Stage("mbconv", 3, 2, 4, 160, 7),
    Stage("mbconv", 3, 1, 6, 176, 14),
    Stage("mbconv", 3, 2, 6, 304, 18),
    Stage("mbconv", 3, 1, 6, 512, 5),
)
_V2_L_STAGES = (
    Stage("fused_mbconv", 3, 1, 1, 32, 4),
    Stage("fused_mbconv", 3, 2, 4, 64, 7),
    Stage("fused_mbconv", 3, 2, 4, 96, 7),
    Stage("mbconv", 3, 2, 4, 192, 10),
    Stage("mbconv", 3, 1, 6, 224, 19),
    Stage("mbconv", 3, 2, 6, 384, 25),
    Stage("mbconv", 3, 1, 6, 640, 7),
)
_V2_XL_STAGES = (
    Stage("fused_mbconv", 3, 1, 1, 32, 4),
    Stage("fused_mbconv", 3, 2, 4, 64, 8),
    Stage("fused_mbconv", 3, 2, 4, 96, 8),
    Stage("mbconv", 3, 2, 4, 192, 16),
    Stage("mbconv", 3, 1, 6, 256, 24),
    Stage("mbconv", 3, 2, 6, 512, 32),
    Stage("mbconv", 3, 1, 6, 640, 8),
)


def _v1(name: str, width: float, depth: float, resolution: int, dropout: float) -> Variant:
    return Variant(f"efficientnet_{name}", _V1_STAGES, width, depth, resolution, dropout)


def _v1_large(name: str, width: float, depth: float, resolution: int, dropout: float) -> Variant:
    return replace(_v1(name, width, depth, resolution, dropout), bn_eps=1e-3, bn_momentum=0.01)


def _lite(
    name: str, width: float, depth: float, resolution: int, dropout: float, timm_resolution: int | None = None
) -> Variant:
    row = _v1(name, width, depth, resolution, dropout)
    return replace(row, activation="relu6", squeeze_ratio=0.0, fixed_ends=True, timm_resolution=timm_resolution)


def _v2(name: str, stages: tuple[Stage, ...], resolution: int, dropout: float) -> Variant:
    stem_channels = stages[0].channels
    return Variant(
        f"efficientnetv2_{name}", stages, 1.0, 1.0, resolution, dropout, stem_channels=stem_channels, bn_eps=1e-3
    )


_ROWS = (
    #         width depth resolution dropout
    _v1("b0", 1.0, 1.0, 224, 0.2),
    _v1("b1", 1.0, 1.1, 240, 0.2),
    _v1("b2", 1.1, 1.2, 260, 0.3),
    _v1("b3", 1.2, 1.4, 300, 0.3),
    _v1("b4", 1.4, 1.8, 380, 0.4),
    _v1_large("b5", 1.6, 2.2, 456, 0.4),
    _v1_large("b6", 1.8, 2.6, 528, 0.5),
    _v1_large("b7", 2.0, 3.1, 600, 0.5),
    _v1_large("b8", 2.2, 3.6, 672, 0.5),
    _v1_large("l2", 4.3, 5.3, 800, 0.5),
    _lite("lite0", 1.0, 1.0, 224, 0.2),
    _lite("lite1", 1.0, 1.1, 240, 0.2),
    _lite("lite2", 1.1, 1.2, 260, 0.3),
    _lite("lite3", 1.2, 1.4, 280, 0.3, timm_resolution=300),
    _lite("lite4", 1.4, 1.8, 300, 0.3, timm_resolution=380),
    _v2("s", _V2_S_STAGES, 384, 0.2),
    _v2("m", _V2_M_STAGES, 480, 0.3),
    _v2("l", _V2_L_STAGES, 480, 0.4),
    _v2("xl", _V2_XL_STAGES, 512, 0.4),
)

VARIANTS: Mapping[str, Variant] = MappingProxyType({row.name: row for row in _ROWS})
"""Every variant by name."""

ALIASES: Mapping[str, str] = MappingProxyType(
    {f"efficientnet_v2_{size}": f"efficientnetv2_{size}" for size in ("s", "m", "l", "xl")}
)
"""torchvision's spelling of a name, mapped to the one used here."""

TF_PREFIX = "tf_"
TF_BN_EPS = 1e-3
TF_BN_MOMENTUM = 0.1


def canonical_name(name: str) -> str:
    """``name`` with aliases resolved and the ``tf_`` prefix kept.

    Raises:
        ValueError: there is no such variant.
    """
    prefix = TF_PREFIX if name.startswith(TF_PREFIX) else ""
    plain = name.removeprefix(TF_PREFIX)
    plain = ALIASES.get(plain, plain)
    if plain not in VARIANTS:
        raise ValueError(f"name: expected one of {', '.join(VARIANTS)}, each also with the prefix tf_, got {name!r}")
    return prefix + plain


def find_variant(name: str) -> Variant:
    """The row for ``name``: a variant, an alias, or either with the ``tf_`` prefix.

    ``tf_`` names have BatchNorm's settings from timm's ports of TensorFlow's weights.

    Raises:
        ValueError: there is no such variant.
    """
    canonical = canonical_name(name)
    row = VARIANTS[canonical.removeprefix(TF_PREFIX)]
    if canonical.startswith(TF_PREFIX):
        return replace(row, bn_eps=TF_BN_EPS, bn_momentum=TF_BN_MOMENTUM)
    return row


def list_models() -> list[str]:
    """The names ``effnet.create_model`` takes; each also exists with the prefix ``tf_`` (SAME padding, eps 1e-3)."""
    return list(VARIANTS)
