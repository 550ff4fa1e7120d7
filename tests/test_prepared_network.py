"""A classifier in inference on CPU as one operator: the layers' results, never those of another moment."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn

import effnet
import effnet_kernels as ek
from effnet.blocks import FusedMBConv, MBConv
from effnet.config import Stage, Variant
from effnet.inference import PreparedNetwork, prepared_linear
from effnet.model import EfficientNet
from effnet.prepared import _entries
from test_prepared import CHANGES, draw
from tolerances import assert_close

VARIANT = Variant(
    name="small",
    stages=(
        Stage("fused_mbconv", 3, 1, 1, 8, 1),
        Stage("fused_mbconv", 3, 2, 2, 8, 2),
        Stage("mbconv", 5, 2, 4, 8, 2),
    ),
    width=1.0,
    depth=1.0,
    resolution=32,
    dropout=0.2,
    stem_channels=8,
    head_channels=32,
)


@pytest.fixture(autouse=True)
def compiled_backend() -> None:
    if ek.backends()["cpu"] is not None:
        pytest.skip(f"no cpu backend: {ek.backends()['cpu']}")


def network(variant: Variant | str = VARIANT) -> EfficientNet:
    torch.manual_seed(0)
    return cast(EfficientNet, draw(effnet.create_model(variant, num_classes=5, fused=True)).eval())


def pictures() -> Tensor:
    return torch.randn(2, 3, 33, 40, generator=torch.Generator().manual_seed(1))


def last_block(model: EfficientNet) -> MBConv:
    return cast(MBConv, cast(nn.Sequential, model.stages[2])[1])


def is_prepared(model: EfficientNet) -> bool:
    entry = _entries.get(model)
    return entry is not None and any(isinstance(weights, PreparedNetwork) for weights in entry.weights.values())


@torch.no_grad()
def layer_by_layer(model: EfficientNet, x: Tensor) -> Tensor:
    return model.classifier(model.head(model.stages(model.stem_features(x))).mean((2, 3)))


@torch.no_grad()
def check(model: EfficientNet, *, prepared: bool = True) -> Tensor:
    """``model`` gives what its layers do, and whether that was one operator is as said."""
    logits: Tensor = model(pictures())
    assert is_prepared(model) == prepared
    assert_close(logits, layer_by_layer(model, pictures()), 1e-5, "logits")
    model.fused = False
    unfused = model(pictures())
    model.fused = True
    assert_close(logits, unfused, 1e-4, "unfused")
    return logits


@pytest.mark.parametrize("name", ["efficientnet_lite0", "tf_efficientnet_b0", "efficientnet_v2_s"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_the_same_bits_as_the_layers(name: str, layout: torch.memory_format) -> None:
    model = network(name)
    for size in ((1, 3, 65, 90), (2, 3, 64, 64)):
        x = torch.randn(size).contiguous(memory_format=layout)
        with torch.inference_mode():
            logits = model(x)
            assert is_prepared(model)
            features = model.head(model.stages(model.stem_features(x)))
            pooled = nn.functional.adaptive_avg_pool2d(features, 1)
            classifier = prepared_linear(model.classifier, pooled, fused=True)
            assert classifier is not None
            assert torch.equal(logits, classifier(pooled, (0, 0, 0, 0)).flatten(1))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_one_block_takes_effect(change: Callable[[MBConv], None]) -> None:
    model = network()
    before = check(model)
    model(pictures())
    change(last_block(model))
    after = check(model)
    assert not torch.allclose(before, after)


def rescale_classifier(model: EfficientNet) -> None:
    with torch.no_grad():
        model.classifier.weight.mul_(2)


def swap_block(model: EfficientNet) -> None:
    other = network().stages[2][1]  # type: ignore[index]
    nn.init.constant_(other.project.bn.weight, 3.0)
    model.stages[2][1] = other  # type: ignore[index]


def remove_block(model: EfficientNet) -> None:
    del model.stages[2][1]  # type: ignore[attr-defined]


def drop_skip(model: EfficientNet) -> None:
    cast(FusedMBConv, cast(nn.Sequential, model.stages[1])[1]).has_skip = False


def pad_otherwise(model: EfficientNet) -> None:
    model.padding = "same"


def other_eps(model: EfficientNet) -> None:
    model.bn_eps = 0.5


@pytest.mark.parametrize(
    "change",
    [rescale_classifier, swap_block, remove_block, drop_skip, pad_otherwise, other_eps],
    ids=lambda change: change.__name__,
)
def test_a_change_of_the_network_takes_effect(change: Callable[[EfficientNet], None]) -> None:
    model = network()
    before = check(model)
    model(pictures())
    change(model)
    assert not torch.allclose(before, check(model))


def test_not_where_a_part_has_a_switch_of_its_own() -> None:
    model = network()
    check(model)
    last_block(model).fused = False
    with torch.no_grad():
        model(pictures())
    assert not is_prepared(model)
    model.fused = None
    with effnet.use_fused(True):
        with torch.no_grad():
            model(pictures())
        assert is_prepared(model)


def test_not_with_another_class_in_a_layers_place() -> None:
    class Doubled(MBConv):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = network()
    before = check(model)
    doubled = copy.deepcopy(last_block(model))
    doubled.__class__ = Doubled
    model.stages[2][1] = doubled  # type: ignore[index]
    assert not torch.allclose(before, check(model, prepared=False))


def test_hooks_anywhere_are_called() -> None:
    for name in ("stages", "stages.1.0", "stages.2.1.depthwise.bn", "head.conv", "classifier"):
        model, calls = network(), []
        check(model)
        handle = model.get_submodule(name).register_forward_hook(lambda *_, calls=calls: calls.append(1))
        with torch.no_grad():
            model(pictures())
        assert calls, name
        handle.remove()
        check(model)


def test_under_autocast_and_in_half_precision() -> None:
    model = network()
    with torch.no_grad():
        exact = model(pictures())
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(pictures())
        assert rounded.dtype == torch.bfloat16
        assert_close(rounded, exact, 5e-2, "autocast")
        assert torch.equal(model(pictures()), exact)
        half = network().to(torch.bfloat16)(pictures().to(torch.bfloat16))
        assert_close(half, exact, 5e-2, "bfloat16")


def test_ends_with_the_network_and_with_a_move_of_a_block() -> None:
    model = network()
    check(model)
    held = weakref.ref(_entries[last_block(model)].weights[torch.float32])
    last_block(model).to(torch.float64)
    gc.collect()
    assert held() is None
    del model
    gc.collect()
    assert not any(isinstance(module, EfficientNet) for module in _entries)
