"""Data sets, the order and draws of training, and reading images."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from effnet import data
from effnet.augmentation import AUGMENTATIONS
from effnet.errors import OptionError
from effnet.images import UnreadableImageError, read_image
from effnet.preprocessing import Preprocessing

SMALL = Preprocessing(32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def digits() -> data.Split:
    return data.load_split("digits", None)


def write_picture(path: Path, colour: tuple[int, int, int] = (200, 100, 50), size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def write_idx(path: Path, values: np.ndarray) -> None:
    """The format of MNIST: magic number with the count of axes, their lengths, the bytes."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def test_digits_are_split_once_and_for_all(digits: data.Split) -> None:
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.classes == tuple("0123456789")
    again = data.load_split("digits", None)
    assert all(digits.test[i][1] == again.test[i][1] for i in range(360))
    train = {digits.train[i][0].tobytes() for i in range(1437)}
    shared = sum(digits.test[i][0].tobytes() in train for i in range(360))
    assert shared == 0


def test_digits_test_labels_are_balanced(digits: data.Split) -> None:
    counts = np.bincount([digits.test[i][1] for i in range(360)])
    assert counts.min() >= 34 and counts.max() <= 38


def test_recorded_mean_and_std_are_those_of_the_digits(digits: data.Split) -> None:
    source = data.SOURCES["digits"]
    raw = Preprocessing(source.resolution, mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels = torch.stack([image for image, _ in data.TestSet(digits.train, raw)])
    assert pixels.mean().item() == pytest.approx(source.mean[0], abs=2e-3)
    assert pixels.std().item() == pytest.approx(source.std[0], abs=2e-3)


def test_fashion_mnist_from_packed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5, 28, 28)), np.array([9, 0, 3, 3, 1])
    for part, count in (("train", 5), ("t10k", 2)):
        write_idx(packed / f"{part}-images-idx3-ubyte.gz", images[:count])
        write_idx(packed / f"{part}-labels-idx1-ubyte.gz", labels[:count])
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", packed)

    split = data.load_split("fashion-mnist", tmp_path / "root")

    assert (len(split.train), len(split.test)) == (5, 2)
    assert split.classes[9] == "Ankle boot"
    image, label = split.train[2]
    assert label == 3
    np.testing.assert_array_equal(np.asarray(image), images[2])


@pytest.mark.skipif(
    not data.DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_of_debian_is_whole(tmp_path: Path) -> None:
    split = data.load_split("fashion-mnist", tmp_path)
    assert (len(split.train), len(split.test)) == (60_000, 10_000)
    assert [split.train[i][1] for i in range(5)] == [9, 0, 0, 3, 0]


def test_cifar_reads_torchvisions_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class FakeCifar:
        classes = ("cat", "dog")

        def __init__(self, root: Path, *, train: bool, download: bool) -> None:
            calls.append((root, train, download))

    monkeypatch.setattr(data.datasets, "CIFAR10", FakeCifar)
    split = data.load_split("cifar10", tmp_path)
    assert calls == [(tmp_path, True, True), (tmp_path, False, True)]
    assert split.classes == ("cat", "dog")


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_folder_of_images(tmp_path: Path, held_out: str) -> None:
    for part in ("train", held_out):
        for name in ("ant", "bee"):
            write_picture(tmp_path / part / name / "1.png")
    split = data.load_split("folder", tmp_path)
    assert (len(split.train), len(split.test), split.classes) == (2, 2, ("ant", "bee"))
    assert split.train[1][1] == 1


def test_unknown_data_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match=r"data: expected one of digits, .*folder, webdataset, got 'mnist'"):
        data.load_split("mnist", None)


def test_folder_without_a_root_is_refused() -> None:
    with pytest.raises(OptionError, match="data_root: expected a folder"):
        data.load_split("folder", None)


def test_folder_without_held_out_part_is_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "train" / "ant" / "1.png")
    with pytest.raises(OptionError, match=r"data_root: expected a folder with train/ and val/ or test/, got .* train"):
        data.load_split("folder", tmp_path)


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    with pytest.raises(OptionError, match="data_root: expected a folder of images for each class"):
        data.load_split("folder", tmp_path)


def test_class_without_images_is_refused(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_picture(tmp_path / part / "ant" / "1.png")
    (tmp_path / "train" / "bee").mkdir()
    with pytest.raises(OptionError, match=r"data_root: .*bee"):
        data.load_split("folder", tmp_path)


def test_different_classes_in_the_parts_are_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "train" / "ant" / "1.png")
    write_picture(tmp_path / "val" / "bee" / "1.png")
    with pytest.raises(OptionError, match="only in one: ant, bee"):
        data.load_split("folder", tmp_path)


def draws(digits: data.Split, epoch: int, num_workers: int, seed: int = 3) -> list[torch.Tensor]:
    training = data.TrainingSet(digits.train, SMALL, "affine", seed)
    loader = data.training_loader(training, 256, num_workers)
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return [images for images, _labels in loader]


def test_draws_depend_on_seed_and_epoch_alone(digits: data.Split) -> None:
    first = draws(digits, epoch=1, num_workers=0)
    torch.rand(7)
    again = draws(digits, epoch=1, num_workers=2)
    assert len(first) == 5
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], draws(digits, epoch=2, num_workers=0)[0])
    assert not torch.equal(first[0], draws(digits, epoch=1, num_workers=0, seed=4)[0])


def test_augmentation_changes_with_the_epoch_but_not_the_picture(digits: data.Split) -> None:
    training = data.TrainingSet(digits.train, SMALL, "affine", seed=0)
    (early, label), (late, same_label) = training[0, 5], training[1, 5]
    assert label == same_label == digits.train[5][1]
    assert not torch.equal(early, late)
    assert torch.equal(early, training[0, 5][0])


def test_draws_leave_the_default_generator_alone(digits: data.Split) -> None:
    training = data.TrainingSet(digits.train, SMALL, "affine", seed=0)
    before = torch.get_rng_state()
    training[0, 0]
    next(iter(data.training_loader(training, 4, 0)))
    assert torch.equal(before, torch.get_rng_state())


def test_two_processes_share_an_epoch(digits: data.Split) -> None:
    training = data.TrainingSet(digits.train, SMALL, "none", seed=0)
    samplers = [data.training_loader(training, 4, 0, rank=rank, world_size=2).sampler for rank in (0, 1)]
    first, second = ({index for _, index in sampler} for sampler in samplers)
    assert len(first) == len(second) == 718
    assert not first & second


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_end_on_the_networks_size(name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    augmented = AUGMENTATIONS[name](SMALL)(Image.fromarray(noise))
    assert augmented.size == (32, 32)
    assert augmented.mode == "RGB"


def test_square_crop_keeps_the_centre() -> None:
    picture = Image.new("RGB", (90, 30), "red")
    picture.paste(Image.new("RGB", (30, 30), "blue"), (30, 0))
    # The bicubic kernel reaches two pixels beyond the crop.
    inner = SMALL(picture)[:, :, 2:-2]
    assert torch.equal(inner, torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand(3, 32, 28))


def test_crop_fraction_and_normalisation() -> None:
    picture = Image.new("RGB", (64, 64), "black")
    picture.paste(Image.new("RGB", (32, 32), "white"), (16, 16))
    pixels = Preprocessing(32, 0.5, (0.5, 0.5, 0.5), (0.25, 0.5, 1.0))(picture)
    torch.testing.assert_close(pixels[:, 16, 16], torch.tensor([2.0, 1.0, 0.5]))
    assert pixels.amin((1, 2)).tolist() == [2.0, 1.0, 0.5]


def test_a_long_strip_is_cheap() -> None:
    assert SMALL(Image.new("RGB", (60_000, 2), "white")).min() == 1.0


@pytest.mark.parametrize(
    "arguments", [{"resolution": 0}, {"resolution": 32, "crop": 1.5}, {"resolution": 32, "std": (1.0, 0.0, 1.0)}]
)
def test_impossible_preprocessing_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Preprocessing(**arguments)  # type: ignore[arg-type]


def pixel(path: Path, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    image = read_image(path)
    assert image.mode == "RGB"
    value = image.getpixel(at)
    assert isinstance(value, tuple)
    return value


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LA"])
def test_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    suffix = {"CMYK": "tif", "YCbCr": "tif"}.get(mode, "png")
    path = tmp_path / f"picture.{suffix}"
    Image.new("RGB", (8, 8), "white").convert(mode if mode != "LA" else "L").convert(mode).save(path)
    assert min(pixel(path)) >= 254


def test_cmyk_jpeg_keeps_its_colour(tmp_path: Path) -> None:
    path = tmp_path / "print.jpg"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path)
    red, green, blue = pixel(path)
    assert red > 200 and green < 60 and blue < 60


@pytest.mark.parametrize(("suffix", "value"), [("png", 0), ("png", 32896), ("tif", 65535), ("pgm", 32896)])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str, value: int) -> None:
    path = tmp_path / f"deep.{suffix}"
    grey = np.full((4, 6), value, np.uint16)
    if suffix == "pgm":
        path.write_bytes(b"P5 6 4 65535\n" + grey.astype(">u2").tobytes())
    else:
        Image.fromarray(grey).save(path)
    assert pixel(path) == (round(value / 257),) * 3


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    path = tmp_path / "glass.png"
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(path)
    red, green, blue = pixel(path)
    assert (red, green, blue) == (255, 127, 127)


def test_transparent_palette_colour_lies_over_white(tmp_path: Path) -> None:
    path = tmp_path / "key.png"
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([10, 20, 30, 200, 0, 0])
    picture.putpixel((1, 0), 1)
    picture.save(path, transparency=0)
    assert pixel(path) == (255, 255, 255)
    assert pixel(path, (1, 0)) == (200, 0, 0)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "portrait.jpg"
    picture = Image.new("RGB", (32, 16), "black")
    picture.paste(Image.new("RGB", (16, 16), "white"), (0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to see it upright
    picture.save(path, exif=exif, quality=95)
    upright = read_image(path)
    assert upright.size == (16, 32)
    assert upright.getpixel((8, 4)) == (255, 255, 255)
    assert upright.getpixel((8, 28)) == (0, 0, 0)


def refusal(path: Path) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message


def test_missing_folder_empty_and_foreign_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    assert "no such file" in refusal(tmp_path / "nowhere.png")
    assert "not a regular file" in refusal(tmp_path)
    assert "an empty file" in refusal(tmp_path / "empty.png")
    assert "not an image" in refusal(tmp_path / "text.jpg")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "bmp", "webp"])
def test_truncated_files_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refusal(path)


def test_float_pixels_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "depth.tif"
    Image.fromarray(np.ones((4, 4), np.float32)).save(path)
    assert "32-bit floats" in refusal(path)


def test_more_than_sixteen_bits_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "counts.tif"
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(path)
    assert "expected 16-bit grey" in refusal(path)


@pytest.mark.parametrize("excess", [1.5, 3.0])
def test_too_many_pixels_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, excess: float) -> None:
    path = write_picture(tmp_path / "bomb.png", size=(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(10_000 / excess))
    assert "more than" in refusal(path)
