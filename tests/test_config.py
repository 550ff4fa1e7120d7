"""The table of variants and the scaling rules."""

import math

import pytest

import effnet
from effnet.config import VARIANTS, canonical_name, find_variant, round_channels, round_repeats


def test_every_variant_is_listed() -> None:
    assert effnet.list_models() == [
        *(f"efficientnet_b{number}" for number in range(9)),
        "efficientnet_l2",
        *(f"efficientnet_lite{number}" for number in range(5)),
        *(f"efficientnetv2_{size}" for size in ("s", "m", "l", "xl")),
    ]


@pytest.mark.parametrize(
    ("channels", "width", "expected"),
    [(32, 1.0, 32), (16, 1.1, 16), (24, 1.1, 24), (40, 1.1, 48), (32, 1.2, 40), (320, 4.3, 1376), (8, 0.1, 8)],
)
def test_channels_round_to_a_multiple_of_eight(channels: int, width: float, expected: int) -> None:
    assert round_channels(channels, width) == expected


@pytest.mark.parametrize("channels", [8, 16, 24, 40, 80, 112, 192, 320, 1280])
def test_rounding_never_loses_more_than_a_tenth(channels: int) -> None:
    for step in range(5, 45):
        width = step / 10
        rounded = round_channels(channels, width)
        assert rounded % 8 == 0
        assert rounded >= 0.9 * channels * width


@pytest.mark.parametrize(("repeats", "depth", "expected"), [(1, 1.0, 1), (1, 1.1, 2), (3, 1.4, 5), (4, 5.3, 22)])
def test_repeats_round_up(repeats: int, depth: float, expected: int) -> None:
    assert round_repeats(repeats, depth) == expected


def test_compound_scaling_follows_the_paper() -> None:
    one = effnet.compound_scaling(1)
    assert one == (1.1, 1.2, 1.15)
    assert effnet.compound_scaling(0) == (1.0, 1.0, 1.0)
    three = effnet.compound_scaling(3)
    assert three.depth == pytest.approx(1.2**3)
    assert three.width == pytest.approx(1.1**3)
    assert three.resolution == pytest.approx(1.15**3)
    work = one.depth * one.width**2 * one.resolution**2
    assert work == pytest.approx(2, abs=0.1)
    assert effnet.compound_scaling(2, alpha=2.0, beta=3.0, gamma=4.0) == (9.0, 4.0, 16.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"phi": math.inf}, "phi: expected a finite number, got inf"),
        ({"phi": 1, "alpha": 0}, "alpha: expected a positive number, got 0"),
        ({"phi": 1, "beta": -1.0}, "beta: expected a positive number, got -1.0"),
        ({"phi": 1, "gamma": math.nan}, "gamma: expected a positive number, got nan"),
    ],
)
def test_compound_scaling_refuses_by_name(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        effnet.compound_scaling(**arguments)


def test_a_scaled_variant_grows_in_all_three_dimensions() -> None:
    base, scaled = VARIANTS["efficientnet_b0"], effnet.scaled_variant(2)
    assert scaled.name == "efficientnet_b0_phi2"
    assert scaled.resolution == round(224 * 1.15**2)
    assert sum(map(len, scaled.blocks())) > sum(map(len, base.blocks()))
    assert scaled.scaled_head_channels == round_channels(1280, 1.1**2)
    assert effnet.scaled_variant(0, name="same").blocks() == base.blocks()


def test_a_scaled_variant_needs_a_known_base() -> None:
    with pytest.raises(ValueError, match=r"base: expected one of efficientnet_b0, .*, got 'resnet50'"):
        effnet.scaled_variant(1, base="resnet50")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("efficientnet_v2_s", "efficientnetv2_s"),
        ("efficientnetv2_l", "efficientnetv2_l"),
        ("tf_efficientnet_b0", "tf_efficientnet_b0"),
        ("tf_efficientnet_v2_m", "tf_efficientnetv2_m"),
    ],
)
def test_aliases_resolve(name: str, expected: str) -> None:
    assert canonical_name(name) == expected


@pytest.mark.parametrize("name", ["efficientnet_b9", "tf_tf_efficientnet_b0", "", "EfficientNet_B0"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"name: expected one of efficientnet_b0, .*efficientnetv2_xl.*, got '{name}'"
    ):
        find_variant(name)


@pytest.mark.parametrize(
    ("name", "eps", "momentum"),
    [
        ("efficientnet_b0", 1e-5, 0.1),
        ("efficientnet_b4", 1e-5, 0.1),
        ("efficientnet_b5", 1e-3, 0.01),
        ("efficientnet_b7", 1e-3, 0.01),
        ("efficientnet_v2_s", 1e-3, 0.1),
        ("tf_efficientnet_b0", 1e-3, 0.1),
        ("tf_efficientnet_b7", 1e-3, 0.1),
        ("tf_efficientnet_lite0", 1e-3, 0.1),
    ],
)
def test_batch_norm_settings_are_those_of_torchvision_and_timm(name: str, eps: float, momentum: float) -> None:
    variant = find_variant(name)
    assert (variant.bn_eps, variant.bn_momentum) == (eps, momentum)


def test_lite_keeps_its_ends_and_has_no_squeeze_and_excite() -> None:
    variant = VARIANTS["efficientnet_lite4"]
    stages = variant.blocks()
    assert (variant.scaled_stem_channels, variant.scaled_head_channels) == (32, 1280)
    assert (len(stages[0]), len(stages[-1])) == (1, 1)
    assert len(stages[1]) == math.ceil(2 * 1.8)
    assert not any(block.squeezed_channels for stage in stages for block in stage)


def test_squeeze_and_excite_is_a_quarter_of_the_blocks_input() -> None:
    for stage in VARIANTS["efficientnet_b2"].blocks():
        for block in stage:
            assert block.squeezed_channels == block.in_channels // 4
    for stage in VARIANTS["efficientnetv2_s"].blocks()[:3]:
        for block in stage:
            assert block.kind == "fused_mbconv"
            assert block.squeezed_channels == 0


def test_depthwise_shapes_of_b0_at_224() -> None:
    """C @ input size, kernel, stride, × count, as in the paper's table 1."""
    size, shapes = 112, []
    for stage in VARIANTS["efficientnet_b0"].blocks():
        for block in stage:
            shapes.append((block.expanded_channels, size, block.kernel_size, block.stride))
            size //= block.stride
    assert shapes == [
        (32, 112, 3, 1),
        (96, 112, 3, 2),
        (144, 56, 3, 1),
        (144, 56, 5, 2),
        (240, 28, 5, 1),
        (240, 28, 3, 2),
        *[(480, 14, 3, 1)] * 2,
        (480, 14, 5, 1),
        *[(672, 14, 5, 1)] * 2,
        (672, 14, 5, 2),
        *[(1152, 7, 5, 1)] * 3,
        (1152, 7, 3, 1),
    ]
