"""Networks: sizes, padding, features, the switch, drop-connect, and what they refuse."""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import effnet
import effnet_kernels.ops
from effnet.blocks import PaddedConv2d, ResidualBlock
from effnet.config import Stage, Variant
from effnet_kernels.nn import SqueezeExcite2d
from tolerances import assert_close, relative_error

PARAMETERS = {
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960,
    "efficientnet_b8": 87_413_142,
    "efficientnet_l2": 480_309_308,
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
    "efficientnet_lite3": 8_197_096,
    "efficientnet_lite4": 13_006_568,
    "efficientnetv2_s": 21_458_488,
    "efficientnetv2_m": 54_139_356,
    "efficientnetv2_l": 118_515_272,
    "efficientnetv2_xl": 208_119_808,
}

GMACS = {
    "efficientnet_b0": 0.40,
    "efficientnet_b1": 0.71,
    "efficientnet_b2": 1.02,
    "efficientnet_b3": 1.87,
    "efficientnet_b4": 4.49,
    "efficientnet_b5": 10.46,
    "efficientnet_b6": 19.40,
    "efficientnet_b7": 38.33,
    "efficientnet_b8": 63.48,
    "efficientnet_l2": 479.1,
    "efficientnet_lite0": 0.40,
    "efficientnet_lite1": 0.62,
    "efficientnet_lite2": 0.89,
    "efficientnet_lite3": 1.65,
    "efficientnet_lite4": 4.04,
    "efficientnetv2_s": 8.44,
    "efficientnetv2_m": 24.76,
    "efficientnetv2_l": 56.40,
    "efficientnetv2_xl": 93.85,
}

# Every kind of block, at a size that float64 can afford.
TINY = Variant(
    "tiny",
    (
        Stage("fused_mbconv", 3, 1, 1, 8, 1),
        Stage("fused_mbconv", 3, 2, 4, 8, 2),
        Stage("mbconv", 5, 2, 1, 16, 2),
        Stage("mbconv", 3, 2, 4, 16, 1),
        Stage("mbconv", 3, 2, 6, 16, 2),
    ),
    width=1.0,
    depth=1.0,
    resolution=64,
    dropout=0.3,
    stem_channels=8,
    head_channels=32,
    drop_connect=0.5,
)


def tiny(**arguments: Any) -> Any:
    torch.manual_seed(0)
    return effnet.create_model(TINY, num_classes=7, **arguments).double()


def images(batch: int = 4, size: int = 48) -> Tensor:
    return torch.randn(batch, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return effnet.create_model(name)


def assert_agree(actual: Tensor, expected: Tensor) -> None:
    """Equal in float64 but for rounding; the absolute part is for gradients that are zero in exact arithmetic."""
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-11)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class TestSize:
    @pytest.mark.parametrize(("name", "expected"), PARAMETERS.items())
    def test_parameters_are_exact(self, name: str, expected: int) -> None:
        assert sum(parameter.numel() for parameter in on_meta(name).parameters()) == expected

    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "expected"), GMACS.items())
    def test_multiply_adds_by_fvcore(self, name: str, expected: float) -> None:
        """Where the resolution is a multiple of 32, every map scales exactly and a small image tells as much."""
        side = effnet.config.VARIANTS[name].macs_resolution
        traced = 32 if side % 32 == 0 else side
        per_pixel, per_image = _fvcore_operations(on_meta(name).to_empty(device="cpu").eval(), traced)
        total = per_pixel * (side // traced) ** 2 + per_image
        digits = 1 if name == "efficientnet_l2" else 2
        assert round(total / 1e9, digits) == expected

    def test_classes_and_channels_are_as_asked(self) -> None:
        model = tiny(in_channels=5)
        assert model(torch.randn(2, 5, 64, 64, dtype=torch.float64)).shape == (2, 7)

    def test_a_variant_of_ones_own_runs(self) -> None:
        model = effnet.create_model(effnet.scaled_variant(0.5), num_classes=3).eval()
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)
        assert model.name == "efficientnet_b0_phi0.5"


def _fvcore_operations(model: nn.Module, side: int) -> tuple[float, float]:
    """Multiply-adds of one image by fvcore: those that grow with the image, and those of single pixels."""
    from fvcore.nn import FlopCountAnalysis

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(model, torch.zeros(1, 3, side, side))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        kinds = dict(analysis.by_operator())
        # fvcore's hooks make every module run by itself, so that squeeze-and-excite's layers are convolutions.
        excitations = [name for name, module in model.named_modules() if isinstance(module, SqueezeExcite2d)]
        excited = sum(analysis.by_module_and_operator()[name]["conv"] for name in excitations)
    per_pixel = sum(kinds.pop(kind, 0) for kind in ("conv", "batch_norm", "adaptive_avg_pool2d")) - excited
    per_image = kinds.pop("linear") + excited
    assert not kinds
    return per_pixel, per_image


class TestNames:
    def test_torchvisions_spelling_is_the_same_network(self) -> None:
        assert on_meta("efficientnet_v2_s").state_dict().keys() == on_meta("efficientnetv2_s").state_dict().keys()
        assert on_meta("efficientnet_v2_s").name == "efficientnetv2_s"

    def test_tf_means_same_padding_and_larger_eps(self) -> None:
        plain, tf = on_meta("efficientnet_b0"), on_meta("tf_efficientnet_b0")
        assert (plain.padding, plain.bn_eps) == ("symmetric", 1e-5)
        assert (tf.padding, tf.bn_eps, tf.name) == ("same", 1e-3, "tf_efficientnet_b0")
        rules = {module.rule for module in tf.modules() if isinstance(module, PaddedConv2d)}
        eps = {module.eps for module in tf.modules() if isinstance(module, nn.BatchNorm2d)}
        assert (rules, eps) == ({"same"}, {1e-3})

    def test_explicit_settings_win_over_the_names(self) -> None:
        model = effnet.create_model("tf_efficientnet_b0", padding="symmetric", bn_eps=0.5, bn_momentum=0.25)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        assert {(norm.eps, norm.momentum) for norm in norms} == {(0.5, 0.25)}
        assert model.padding == "symmetric"

    def test_parts_have_clear_names(self) -> None:
        block = on_meta("efficientnet_b0").stages[1][0]
        assert [name for name, _ in block.named_children()] == ["expand", "depthwise", "squeeze_excite", "project"]
        assert "stages.1.0.depthwise.conv.weight" in on_meta("efficientnet_b0").state_dict()


class TestPadding:
    @pytest.mark.parametrize("size", [1, 2, 7, 32, 33])
    @pytest.mark.parametrize("kernel_size", [3, 5])
    def test_same_puts_the_odd_row_at_the_bottom_and_right(self, kernel_size: int, size: int) -> None:
        """Against a convolution of the explicitly padded image, TensorFlow's formula written out."""
        conv = PaddedConv2d(4, 4, kernel_size, 2, 4, "same").double()
        x = torch.randn(2, 4, size, size + 1, dtype=torch.float64)
        totals = [max((math.ceil(n / 2) - 1) * 2 + kernel_size - n, 0) for n in (size, size + 1)]
        (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in totals)
        padded = nn.functional.pad(x, (left, right, top, bottom))
        expected = nn.functional.conv2d(padded, conv.weight, stride=2, groups=4)
        assert torch.equal(conv(x), expected)
        assert conv(x).shape[2:] == (math.ceil(size / 2), math.ceil((size + 1) / 2))

    def test_even_inputs_pad_as_tensorflow_does(self) -> None:
        x = torch.zeros(1, 1, 224, 224)
        assert PaddedConv2d(1, 1, 3, 2, 1, "same").explicit_padding(x) == (0, 1, 0, 1)
        assert PaddedConv2d(1, 1, 5, 2, 1, "same").explicit_padding(x) == (1, 2, 1, 2)
        assert PaddedConv2d(1, 1, 5, 2, 1, "symmetric").explicit_padding(x) == (2, 2, 2, 2)

    def test_the_rules_differ_and_can_be_changed_later(self) -> None:
        model = tiny().eval()
        symmetric = model(images())
        model.padding = "same"
        assert relative_error(model(images()), symmetric) > 1e-3
        assert model.state_dict().keys() == tiny().state_dict().keys()
        model.padding = "symmetric"
        assert torch.equal(model(images()), symmetric)

    def test_fused_and_unfused_agree_on_odd_sizes(self) -> None:
        model = tiny(padding="same").eval()
        x = torch.randn(2, 3, 45, 38, dtype=torch.float64)
        expected = model(x)
        with effnet.use_fused(True):
            assert relative_error(model(x), expected) < 1e-10


class TestFeatures:
    @pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_lite2", "efficientnetv2_s"])
    @pytest.mark.parametrize("size", [(64, 96), (65, 33)])
    def test_pyramid_at_strides_2_to_32(self, name: str, size: tuple[int, int]) -> None:
        model = effnet.create_model(name, features_only=True).eval()
        with torch.no_grad():
            features = model(torch.randn(1, 3, *size))
        assert model.feature_strides == (2, 4, 8, 16, 32)
        expected = [
            (1, channels, *(math.ceil(side / stride) for side in size))
            for channels, stride in zip(model.feature_channels, model.feature_strides, strict=True)
        ]
        assert [tuple(feature.shape) for feature in features] == expected

    def test_channels_of_b0(self) -> None:
        assert on_meta("efficientnet_b0").feature_channels == (16, 24, 40, 112, 320)

    def test_no_parameter_is_left_unused(self) -> None:
        model = tiny(features_only=True, drop_connect=0.0)
        sum(feature.sum() for feature in model(images())).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        assert not any(name.startswith(("head", "classifier")) for name in model.state_dict())

    def test_the_classifier_sees_the_last_feature(self) -> None:
        model = tiny().eval()
        x = images()
        pooled = model.head(model.forward_features(x)[-1]).mean((2, 3))
        assert relative_error(model(x), model.classifier(pooled)) < 1e-12


class TestSwitch:
    def test_default_is_off(self) -> None:
        assert effnet.fused is False
        assert tiny().runs_fused is False

    def test_context_manager_restores_even_after_an_exception(self) -> None:
        model = tiny()
        with effnet.use_fused(True):
            assert effnet.fused is True
            assert model.runs_fused
            with effnet.use_fused(False):
                assert not model.runs_fused
            assert model.runs_fused
        assert effnet.fused is False
        with pytest.raises(KeyError), effnet.use_fused(True):
            raise KeyError
        assert effnet.fused is False

    def test_the_models_own_setting_wins_and_reaches_every_block(self) -> None:
        model = tiny(fused=True)
        switchable = [module for module in model.modules() if isinstance(module, effnet.switch.Switchable)]
        assert len(switchable) == 1 + 2 + 8 + 18
        assert all(module.runs_fused for module in switchable)
        model.fused = False
        with effnet.use_fused(True):
            assert not any(module.runs_fused for module in switchable)
            model.fused = None
            assert all(module.runs_fused for module in switchable)
        assert model.fused is None

    @pytest.mark.parametrize("value", [1, 0, "yes", None, torch.tensor(True)])
    def test_process_default_takes_only_a_bool(self, value: object) -> None:
        with pytest.raises(TypeError, match="fused: expected True or False, got "):
            effnet.fused = value  # type: ignore[assignment]
        with pytest.raises(TypeError, match="fused: expected True or False, got "), effnet.use_fused(value):  # type: ignore[arg-type]
            pass
        assert effnet.fused is False

    @pytest.mark.parametrize("value", [1, "yes"])
    def test_model_takes_only_a_bool_or_none(self, value: object) -> None:
        model = tiny(fused=True)
        with pytest.raises(TypeError, match="fused: expected True, False or None, got "):
            model.fused = value
        with pytest.raises(TypeError, match="fused: expected True, False or None, got "):
            effnet.create_model("efficientnet_b0", fused=value)  # type: ignore[arg-type]
        assert model.fused is True

    def test_only_fused_calls_the_operators(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[str] = []

        def spy(name: str) -> None:
            original = getattr(effnet_kernels.ops, name)

            def recorded(*args: Any, **kwargs: Any) -> Any:
                calls.append(name)
                return original(*args, **kwargs)

            monkeypatch.setattr(effnet_kernels.ops, name, recorded)

        spy("mbconv")
        spy("batch_norm_act")
        model = tiny().eval()
        model(images())
        assert calls == []
        model.fused = True
        model(images())
        # Stem and head, five layers in three Fused-MBConv blocks, and the projections of five MBConv blocks.
        assert (calls.count("mbconv"), calls.count("batch_norm_act")) == (5, 2 + 5 + 5)

    def test_switching_changes_no_tensor(self) -> None:
        model = tiny()
        before, pointers = snapshot(model), [tensor.data_ptr() for tensor in model.state_dict().values()]
        model.fused = True
        model.fused = None
        with effnet.use_fused(True):
            pass
        assert list(before) == list(model.state_dict())
        assert pointers == [tensor.data_ptr() for tensor in model.state_dict().values()]
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_outputs_gradients_and_statistics_agree(self, training: bool, memory_format: torch.memory_format) -> None:
        x = images().to(memory_format=memory_format).requires_grad_()
        results = []
        for fused in (False, True):
            model = tiny(fused=fused).train(training)
            torch.manual_seed(3)
            out = model(x)
            gradients = torch.autograd.grad(out.square().sum(), [x, *model.parameters()])
            results.append([out, *gradients, *model.buffers()])
        for unfused, fused_result in zip(*results, strict=True):
            assert_agree(fused_result, unfused)

    def test_twins_train_identically_and_may_switch_at_any_step(self) -> None:
        """With drop-connect and dropout on: the same random draws fused, unfused and alternating."""

        def train(fused_at: Callable[[int], bool]) -> dict[str, Tensor]:
            model = tiny()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            torch.manual_seed(5)
            for step in range(4):
                model.fused = fused_at(step)
                optimizer.zero_grad()
                model(images()).square().mean().backward()
                optimizer.step()
            return snapshot(model)

        unfused = train(lambda step: False)
        assert relative_error(unfused["classifier.weight"], tiny().state_dict()["classifier.weight"]) > 1e-3
        for other in (train(lambda step: True), train(lambda step: step % 2 == 0)):
            for name, expected in unfused.items():
                assert_agree(other[name], expected)

    def test_survives_a_deep_copy(self) -> None:
        assert copy.deepcopy(tiny(fused=True)).fused is True

    @pytest.mark.parametrize("training", [False, True])
    def test_unfused_traces_whole_under_compile(self, training: bool) -> None:
        """Fused: test_compiled_networks.py."""
        torch._dynamo.reset()
        model = tiny(dropout=0.0, drop_connect=0.0, fused=False).train(training)
        expected = copy.deepcopy(model)(images())
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert relative_error(compiled(images()), expected) < 1e-10
        assert int(model.stem.bn.num_batches_tracked) == int(training)

    def test_compiled_code_follows_the_switch(self) -> None:
        torch._dynamo.reset()
        graphs: list[str] = []

        def record(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
            graphs.append(str(graph.graph))
            return graph.forward

        model = tiny().eval()
        compiled = torch.compile(model, fullgraph=True, backend=record)
        for fused in (False, True):
            with effnet.use_fused(fused):
                compiled(images())
        assert len(graphs) == 2


class TestDropConnect:
    def test_rates_grow_linearly_from_zero(self) -> None:
        blocks = [module for module in on_meta("efficientnet_b0").modules() if isinstance(module, ResidualBlock)]
        assert [block.drop_connect for block in blocks] == pytest.approx([0.2 * index / 16 for index in range(16)])

    def test_drops_samples_and_divides_by_survival(self) -> None:
        block = tiny().stages[4][1]
        assert block.has_skip
        torch.manual_seed(0)
        keep = block.keep(torch.empty(4000, 1))
        assert keep is not None
        survival = 1 - block.drop_connect
        assert sorted(set(keep.tolist())) == pytest.approx([0, 1 / survival])
        assert float(keep.mean()) == pytest.approx(1, abs=0.1)

    def test_only_in_training_and_where_there_is_a_skip(self) -> None:
        model = tiny()
        x = torch.empty(4, 1)
        assert model.stages[1][0].keep(x) is None
        assert model.stages[0][0].keep(x) is None
        assert model.stages[4][1].keep(x) is not None
        assert model.eval().stages[4][1].keep(x) is None

    def test_a_dropped_sample_passes_its_input_through(self) -> None:
        block = tiny().stages[4][1]
        block.drop_connect = 1 - 1e-12
        x = torch.randn(3, 16, 4, 4, dtype=torch.float64)
        for fused in (False, True):
            block.fused = fused
            assert torch.equal(block(x), x)

    def test_draws_are_torchvisions(self) -> None:
        """From the same seed, the same samples are dropped as by ``torchvision.ops.stochastic_depth``."""
        from torchvision.ops import stochastic_depth

        block = tiny().stages[4][1]
        torch.manual_seed(2)
        expected = stochastic_depth(torch.ones(64, 1, 1, 1), block.drop_connect, "row").flatten()
        torch.manual_seed(2)
        assert torch.equal(block.keep(torch.empty(64, 1)), expected)


class TestInitialisation:
    def test_fan_out_normal_and_uniform_classifier(self) -> None:
        torch.manual_seed(0)
        model = effnet.create_model("efficientnet_b0")
        block = model.stages[6][0]
        for conv, fan_out in ((block.expand.conv, 1152), (block.depthwise.conv, 9), (block.project.conv, 320)):
            assert float(conv.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
        bound = 1 / math.sqrt(1000)
        weight = model.classifier.weight.detach()
        assert float(weight.abs().max()) <= bound
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert not model.classifier.bias.any()
        assert not block.squeeze_excite.reduce.bias.any()

    def test_outputs_of_a_fresh_network_are_of_moderate_size(self) -> None:
        torch.manual_seed(0)
        out = effnet.create_model("efficientnet_b0")(torch.randn(4, 3, 64, 64))
        assert 0.01 < float(out.detach().std()) < 3


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"name": "resnet50"}, ValueError, "name: expected one of .*, got 'resnet50'"),
            ({"name": 3}, TypeError, "name: expected a string or a Variant, got int"),
            ({"num_classes": 0}, ValueError, "num_classes: expected a positive integer, got 0"),
            ({"num_classes": True}, ValueError, "num_classes: expected a positive integer, got True"),
            ({"in_channels": 1.5}, ValueError, "in_channels: expected a positive integer, got 1.5"),
            ({"padding": "valid"}, ValueError, "padding: expected one of symmetric, same, got 'valid'"),
            ({"bn_eps": -1e-3}, ValueError, "bn_eps: expected a non-negative number, got -0.001"),
            ({"bn_eps": math.nan}, ValueError, "bn_eps: expected a non-negative number, got nan"),
            ({"bn_momentum": 2.0}, ValueError, "bn_momentum: expected a number from 0 to 1, got 2.0"),
            ({"dropout": 1.0}, ValueError, "dropout: expected a probability below 1, got 1.0"),
            ({"drop_connect": "0.2"}, ValueError, "drop_connect: expected a probability below 1, got '0.2'"),
            ({"features_only": 1}, TypeError, "features_only: expected True or False, got 1"),
        ],
    )
    def test_arguments_of_create_model(self, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            effnet.create_model(**{"name": "efficientnet_b0", **arguments})

    @pytest.mark.parametrize(
        ("x", "error", "message"),
        [
            ([[1.0]], TypeError, r"x: expected a Tensor of shape \(N, 3, H, W\), got list"),
            (torch.zeros(3, 32, 32), ValueError, r"x: expected shape \(N, 3, H, W\), got \(3, 32, 32\)"),
            (torch.zeros(1, 1, 32, 32), ValueError, r"x: expected shape \(N, 3, H, W\), got \(1, 1, 32, 32\)"),
            (torch.zeros(1, 3, 0, 32), ValueError, r"x: expected H and W of at least 1, got .*\(1, 3, 0, 32\)"),
            (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), TypeError, "x: expected a floating dtype .*torch.uint8"),
            (torch.zeros(1, 3, 32, 20), ValueError, r"x: expected more than 1 value per channel .*\(1, 3, 32, 20\)"),
        ],
    )
    @pytest.mark.parametrize("features_only", [False, True])
    def test_inputs(self, x: Any, error: type[Exception], message: str, features_only: bool) -> None:
        model = effnet.create_model(TINY, features_only=features_only)
        before = snapshot(model)
        with pytest.raises(error, match=message):
            model(x)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    @pytest.mark.parametrize("size", [1, 5, 32])
    @pytest.mark.parametrize("padding", ["symmetric", "same"])
    def test_tiny_images_are_fine_where_statistics_allow(self, size: int, padding: Any) -> None:
        model = tiny(padding=padding)
        for fused in (False, True):
            model.fused = fused
            assert model.train()(images(batch=2, size=size)).isfinite().all()
            assert model.eval()(images(batch=1, size=size)).isfinite().all()

    @pytest.mark.parametrize("training", [False, True])
    def test_an_empty_batch_gives_empty_logits_and_changes_no_statistics(self, training: bool) -> None:
        model = tiny().train(training)
        before = {name: t.clone() for name, t in model.state_dict().items() if "num_batches" not in name}
        for fused in (False, True):
            model.fused = fused
            assert model(images(batch=0, size=32)).shape == (0, model.classifier.out_features)
        assert all(torch.equal(before[name], model.state_dict()[name]) for name in before)

    def test_settings_are_checked_when_changed(self) -> None:
        model = tiny()
        with pytest.raises(ValueError, match="padding: expected one of symmetric, same, got 'valid'"):
            model.padding = "valid"
        with pytest.raises(ValueError, match="bn_eps: expected a non-negative number, got -1"):
            model.bn_eps = -1
        assert (model.padding, model.bn_eps) == ("symmetric", 1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=("nchw", "channels_last"))
def test_one_image_folds_the_scale_into_the_projection(layout: torch.memory_format, monkeypatch: Any) -> None:
    """Without gradients one image takes the path that leaves z unscaled; its logits are those of the unfused model."""
    from effnet import blocks

    calls = []
    unscaled = blocks.mbconv_core_unscaled
    monkeypatch.setattr(blocks, "mbconv_core_unscaled", lambda *a, **k: calls.append(a[0].shape) or unscaled(*a, **k))
    model = effnet.create_model("efficientnet_b0", num_classes=10).double().eval()
    one, two = (images(batch, 64).contiguous(memory_format=layout) for batch in (1, 2))
    with torch.no_grad(), effnet.use_fused(False):
        expected = model(one), model(two)
    with torch.no_grad(), effnet.use_fused(True):
        assert_close(model(two), expected[1], 1e-12, "two images")
        assert not calls
        assert_close(model(one), expected[0], 1e-12, "one image")
        assert 0 < len(calls) < 16
        taken = len(calls)
    with effnet.use_fused(True):
        assert_close(model(one), expected[0], 1e-12, "one image with gradients")
    assert len(calls) == taken
