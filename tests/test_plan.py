"""Launch plans: what the planner decides for EfficientNet-B0's shapes, and how ``effnet_kernels.plan`` shows it."""

import pytest
import torch

import effnet_kernels as ek
from effnet_kernels.build import plan_library
from effnet_kernels.plan import DEVICES

B0 = (
    (96, 112, 3, 2),
    (144, 56, 3, 1),
    (144, 56, 5, 2),
    (240, 28, 5, 1),
    (240, 28, 3, 2),
    (480, 14, 3, 1),
    (480, 14, 5, 1),
    (672, 14, 5, 1),
    (672, 14, 5, 2),
    (1152, 7, 5, 1),
    (1152, 7, 3, 1),
)
"""Channels, size, kernel and stride of the depthwise convolutions with an expansion before them, at 224²."""


@pytest.fixture(autouse=True)
def planner() -> None:
    try:
        plan_library()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=("channels_last", "nchw"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=("float32", "bfloat16"))
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [1, 32, 128])
def test_plans_fit_the_device(batch: int, device: str, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    for channels, size, kernel, stride in B0:
        plan = ek.plan(
            (batch, channels, size, size), kernel, stride, dtype=dtype, memory_format=memory_format, device=device
        )
        for launch in plan.launches:
            assert 0 < launch.blocks < 2**31
            assert launch.threads % 32 == 0 and 32 <= launch.threads <= 256
            assert launch.shared_bytes <= DEVICES[device].shared_per_block


@pytest.mark.parametrize("device", DEVICES)
def test_small_maps_fill_the_machine(device: str) -> None:
    """At batch 64 every pass over a 14² or 7² map has a block for every multiprocessor."""
    for channels, size, kernel, stride in B0:
        for launch in ek.plan((64, channels, size, size), kernel, stride, device=device).launches:
            assert launch.blocks >= DEVICES[device].multiprocessors, (
                f"{launch.name} of {channels}@{size}: {launch.blocks}"
            )


def test_a_block_takes_several_images_where_there_are_plenty() -> None:
    """So that the weight gradient's partial sums stay small beside 7² maps."""
    backward = ek.plan((128, 1152, 7, 7), 5).launches[5]
    assert backward.name == "B2 depthwise_backward"
    assert backward.tiling["images_per_block"] >= 8
    assert backward.tiling["groups"] * backward.tiling["images_per_block"] >= 128


def test_one_image_is_cut_into_strips() -> None:
    forward = ek.plan((1, 96, 112, 112), 3, 2).launches[1]
    assert forward.tiling["strips"] > 4
    assert forward.tiling["strips"] * forward.tiling["strip_rows"] >= 56


def test_it_prints_a_line_per_launch() -> None:
    lines = str(ek.plan((32, 240, 28, 28), 5)).splitlines()
    assert len(lines) == 8
    assert lines[0].split() == ["pass", "blocks", "threads", "shared", "tiling"]
    assert lines[2].startswith("F2 depthwise_forward") and "tile_columns 14" in lines[2]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((1, 2, 3), 3), {}, r"shape: expected \(N, C, H, W\), each at least 1, got \(1, 2, 3\)"),
        (((1, 0, 8, 8), 3), {}, "shape: expected"),
        (((1, 8, 8, 8), 4), {}, r"kernel_size: expected one of \(3, 5, 7\), got 4"),
        (((1, 8, 8, 8), 3, 3), {}, r"stride: expected one of \(1, 2\), got 3"),
        (((1, 8, 8, 8), 3, 1, (3, 0, 0, 0)), {}, "padding: expected four numbers from 0 to 2"),
        (((1, 8, 2, 2), 5, 1, (0, 0, 0, 0)), {}, "shape: 2×2 with padding"),
        (((1, 8, 8, 8), 3), {"dtype": torch.float64}, "dtype: expected float32, float16 or bfloat16"),
        (((1, 8, 8, 8), 3), {"memory_format": torch.preserve_format}, "memory_format: expected"),
        (((1, 8, 8, 8), 3), {"device": "V100"}, "device: expected one of T4, A100, RTX 4090, H100"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ek.plan(*arguments, **options)
