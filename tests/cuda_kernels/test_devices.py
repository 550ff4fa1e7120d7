"""Other devices: plans depend on the number of multiprocessors and on their shared memory, results do not."""

from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effnet_kernels.arguments import Padding
from operators.axes import ACTIVATIONS, LAYOUTS
from operators.cases import Case, Shape, batch_norm_act_case, depthwise_conv_bn_act_case, mbconv_core_case
from operators.parity import check_parity, evaluate
from operators.sampling import Row, label, pairwise

KIB = 1024


class Limits(NamedTuple):
    """What plans depend on; shared memory in KiB."""

    multiprocessors: int
    per_multiprocessor: int
    per_block: int

    def apply(self, runtime: ModuleType) -> None:
        runtime.set_device(
            multiprocessors=self.multiprocessors,
            shared_memory_per_multiprocessor=self.per_multiprocessor * KIB,
            shared_memory_per_block_optin=self.per_block * KIB,
        )


DEVICES = {
    "t4": Limits(40, 64, 64),
    "rtx4090": Limits(128, 100, 99),
    "a100": Limits(108, 164, 163),
    "h100": Limits(132, 228, 227),
    "tiny": Limits(1, 64, 48),
}

SHAPES = ((2, 40, 45, 43), (1, 24, 20, 70), (3, 9, 9, 140), (70, 17, 7, 5))

ROWS = pairwise(
    {
        "device": tuple(DEVICES),
        "shape": SHAPES,
        "kernel": (3, 5, 7),
        "stride": (1, 2),
        "layout": LAYOUTS,
        "dtype": (torch.float32, torch.bfloat16),
    }
)


@pytest.mark.parametrize("row", ROWS, ids=label)
def test_parity(row: Row, runtime: ModuleType) -> None:
    options = dict(row)
    DEVICES[options.pop("device")].apply(runtime)
    check_parity(mbconv_core_case(**options))


@pytest.mark.parametrize("row", ROWS[::3], ids=label)
def test_parity_in_inference(row: Row, runtime: ModuleType) -> None:
    options = dict(row)
    DEVICES[options.pop("device")].apply(runtime)
    check_parity(mbconv_core_case(**options, bn1="frozen", bn2="frozen"), gradient=False)


def plans(runtime: ModuleType, case: Case) -> dict[str, Any]:
    """Grid, block and shared memory of every kernel that a training step launches."""
    runtime.reset_launches()
    evaluate(case.call, case.tensors)
    return {r["kernel"]: (r["grid"], r["block"], r["dynamic_shared_bytes"]) for r in runtime.launches()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plans_differ(layout: str, runtime: ModuleType) -> None:
    """An image is cut into as many strips as a device has use for; stages are as tall as its shared memory allows."""
    case = depthwise_conv_bn_act_case((1, 320, 400, 3), layout=layout)
    by_device = {}
    for name, limits in DEVICES.items():
        limits.apply(runtime)
        by_device[name] = plans(runtime, case)
        assert all(shared <= limits.per_block * KIB for _, _, shared in by_device[name].values())
    for kernel in ("depthwise_forward", "depthwise_backward"):
        blocks = {name: by_device[name][kernel][0][0] for name in DEVICES}
        assert blocks["tiny"] < blocks["t4"] < blocks["a100"] < blocks["h100"], kernel
    shared = {name: by_device[name]["depthwise_backward"][2] for name in DEVICES}
    assert shared["t4"] < shared["a100"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_streaming_plans_differ(layout: str, runtime: ModuleType) -> None:
    case = batch_norm_act_case((1, 4, 200, 150), layout=layout)
    blocks = {}
    for name in ("tiny", "h100"):
        DEVICES[name].apply(runtime)
        blocks[name] = plans(runtime, case)
    for kernel in ("statistics", "backward_sums"):
        assert blocks["tiny"][kernel][0] < blocks["h100"][kernel][0], kernel


def test_images_share_a_block_where_there_are_plenty(runtime: ModuleType) -> None:
    """On one multiprocessor 70 images are plenty, on 132 they are not."""
    case = depthwise_conv_bn_act_case((70, 17, 7, 5))
    blocks = {}
    for name in ("tiny", "h100"):
        DEVICES[name].apply(runtime)
        blocks[name] = plans(runtime, case)["depthwise_forward"][0][0]
    assert blocks["tiny"] < 70 <= blocks["h100"]


class Drawn(NamedTuple):
    device: str
    shape: Shape
    options: dict[str, Any]


ELEMENTS = 30_000


@st.composite
def any_call(draw: st.DrawFn) -> Drawn:
    """Shapes that are long along any one axis, or two, of at most ELEMENTS elements."""
    sizes, room = {}, ELEMENTS
    for axis in draw(st.permutations(("images", "channels", "height", "width"))):
        most = draw(st.sampled_from([limit for limit in (1, 9, 70, 1200, 9000) if limit <= room] or [1]))
        sizes[axis] = draw(st.integers(1, most))
        room //= sizes[axis]
    kernel = draw(st.sampled_from((3, 5, 7)))
    pads: Padding = draw(st.tuples(*[st.integers(0, kernel - 1)] * 4))
    height = max(sizes["height"], kernel - pads[0] - pads[1])
    width = max(sizes["width"], kernel - pads[2] - pads[3])
    options = {
        "kernel": kernel,
        "padding": pads,
        "stride": draw(st.sampled_from((1, 2))),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "dtype": draw(st.sampled_from((torch.float32, torch.float16, torch.bfloat16))),
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "bn1": draw(st.sampled_from(("frozen", None))),
        "bn2": "frozen",
        "se": draw(st.sampled_from(("matrix", None))),
    }
    return Drawn(draw(st.sampled_from(tuple(DEVICES))), (sizes["images"], sizes["channels"], height, width), options)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(any_call())
def test_nothing_is_refused(module: ModuleType, drawn: Drawn) -> None:
    """No plan asks for more shared memory, threads or blocks than there are, or leaves an element unwritten.

    Frozen statistics, since one value per channel has no others: the same launches but for a merge.
    """
    DEVICES[drawn.device].apply(module)
    module.reset_launches()
    case = mbconv_core_case(drawn.shape, **drawn.options)
    for gradient in (True, False):
        for name, t in evaluate(case.call, case.tensors, gradient=gradient).tensors().items():
            assert t.isfinite().all(), name
