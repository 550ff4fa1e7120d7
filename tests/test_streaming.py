"""Data in WebDataset's shards: every picture once, in an order that can be repeated; what is no shard is refused."""

import gzip
import io
import itertools
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from effnet import data
from effnet.cli.app import app
from effnet.errors import OptionError
from effnet.options import TrainingOptions
from effnet.preprocessing import Preprocessing
from effnet.shards import ShardError, Shards, find_shards, index_shards
from effnet.streaming import ShardBatches, Steps
from effnet.training import train

SIZES = (9, 14, 3, 20, 7)
"""Pictures in each training shard: 53, a prime, which no number of devices or processes divides."""

TEST_SIZES = (6, 5)
PLACES = [(1, 1), (1, 4), (2, 1), (2, 3), (3, 2), (5, 1), (8, 3)]
"""Devices and loading processes of each: fewer, as many and more than there are shards."""

Member = tuple[str, bytes]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_shard(path: Path, members: Iterable[Member]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def sample(key: str, label: int = 0) -> list[Member]:
    return [(f"{key}.png", png(Image.new("L", (8, 8), 100))), (f"{key}.cls", str(label).encode())]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> data.Split:
    """Real pictures: Fashion-MNIST where Debian's package is installed, else digits."""
    name = "fashion-mnist" if data.DEBIAN_FASHION_MNIST.is_dir() else "digits"
    return data.load_split(name, tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def root(split: data.Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train/000000.tar`` and so on, ``test/…`` and ``classes.txt``."""
    folder = tmp_path_factory.mktemp("shards")
    for part, pictures, sizes in (("train", split.train, SIZES), ("test", split.test, TEST_SIZES)):
        assert not isinstance(pictures, Shards) and pictures is not None
        first = 0
        for number, size in enumerate(sizes):
            members: list[Member] = []
            for index in range(first, first + size):
                image, label = pictures[index]
                members += [(f"{index:06}.png", png(image)), (f"{index:06}.cls", f"{label}\n".encode())]
                members += [(f"{index:06}.json", b"{}")]
            write_shard(folder / part / f"{number:06}.tar", members)
            first += size
    (folder / "classes.txt").write_text("\n".join(split.classes) + "\n")
    return folder


@pytest.fixture
def shards(root: Path, tmp_path: Path) -> Shards:
    return index_shards("data_root", find_shards("data_root", root / "train" / "{000000..000004}.tar"), tmp_path)


def marked(epoch: int, index: int, image: Image.Image) -> Tensor:
    """In place of the picture, what was drawn, and a pixel to tell it by."""
    return torch.tensor([epoch, index, sum(image.convert("L").tobytes())])


def streams(shards: Shards, epoch: int, devices: int, processes: int, seed: int | None = 0) -> Iterator[list[Any]]:
    for rank in range(devices):
        batches = ShardBatches(shards, marked, Steps(len(shards), 4, rank, devices), seed)
        for worker in range(processes):
            yield list(batches.stream(epoch, worker, processes))


def test_shards_hold_what_was_written(shards: Shards) -> None:
    assert tuple(shard.samples for shard in shards.shards) == SIZES
    assert len(shards) == 53


@pytest.mark.parametrize(("devices", "processes"), PLACES)
@pytest.mark.parametrize("seed", [0, None])
def test_every_picture_is_read_exactly_once(shards: Shards, devices: int, processes: int, seed: int | None) -> None:
    read = [item for stream in streams(shards, 3, devices, processes, seed) for item in stream]
    assert Counter(sample["__key__"] for _index, sample in read) == Counter(f"{index:06}" for index in range(53))
    assert all(int(sample["__key__"]) == index for index, sample in read)


@given(
    samples=st.integers(1, 300),
    batch_size=st.integers(2, 20),
    devices=st.integers(1, 9),
    processes=st.integers(1, 7),
)
@settings(derandomize=True, deadline=None, max_examples=200)
def test_devices_take_equally_many_steps_of_nearly_equal_size(
    samples: int, batch_size: int, devices: int, processes: int
) -> None:
    places = [Steps(samples, batch_size, rank, devices) for rank in range(devices)]
    sizes = [[place.pictures(range(step, step + 1)) for step in range(place.count)] for place in places]
    assert len({len(of_device) for of_device in sizes}) == 1
    assert sum(map(sum, sizes)) == samples
    assert max(map(max, sizes)) <= batch_size
    assert min(map(min, sizes)) == places[0].smallest >= max(map(max, sizes)) - 2
    bounds = [place.bounds(worker, processes) for place in places for worker in range(processes)]
    assert bounds[0][0] == 0 and bounds[-1][1] == samples
    assert all(before[1] == after[0] for before, after in itertools.pairwise(bounds))


def loaded(shards: Shards, epoch: int, devices: int, num_workers: int, seed: int = 0) -> list[list[Tensor]]:
    """The batches of every device."""
    every = []
    for rank in range(devices):
        batches = ShardBatches(shards, marked, Steps(len(shards), 8, rank, devices), seed)
        loader = data._shard_loader(batches, num_workers)
        for at in (0, epoch):  # the processes of the first epoch go on into the next
            loader.sampler.set_epoch(at)  # type: ignore[attr-defined]
            seen = [torch.cat([images, labels[:, None]], 1) for images, labels in loader]
        assert len(loader) == len(seen)
        every.append(seen)
    return every


@pytest.mark.parametrize(("devices", "num_workers"), [(1, 0), (2, 2)])
def test_loaders_give_every_picture_once(shards: Shards, split: data.Split, devices: int, num_workers: int) -> None:
    batches = loaded(shards, 2, devices, num_workers)
    assert len({len(of_device) for of_device in batches}) == 1
    rows = torch.cat([batch for of_device in batches for batch in of_device]).tolist()
    assert not isinstance(split.train, Shards)
    expected = [[2, i, sum(split.train[i][0].tobytes()), split.train[i][1]] for i in range(53)]
    assert sorted(rows) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_order_depends_on_seed_and_epoch_alone(shards: Shards, num_workers: int) -> None:
    def order(epoch: int, seed: int = 0) -> list[list[Any]]:
        return [batch.tolist() for batch in loaded(shards, epoch, 1, num_workers, seed)[0]]

    first = order(1)
    torch.rand(3)
    assert order(1) == first
    assert order(2) != first and order(1, seed=1) != first
    shuffled = [row[1] for batch in first for row in batch]
    assert shuffled != sorted(shuffled)


def test_steps_may_be_asked_for_in_any_order(shards: Shards) -> None:
    batches = ShardBatches(shards, marked, Steps(53, 8), seed=0)
    forwards = [batches[1, step][0].tolist() for step in range(len(batches))]
    backwards = [batches[1, step][0].tolist() for step in reversed(range(len(batches)))]
    assert forwards == backwards[::-1]


def test_test_pictures_come_in_order(root: Path) -> None:
    test = data.load_split("webdataset", root).test
    assert isinstance(test, Shards)
    loader = data.test_loader(data.TestSet(test, Preprocessing(32)), 4, 0, rank=0, world_size=1)
    labels = torch.cat([labels for _images, labels in loader])
    by_hand = [label for stream in streams(test, 0, 1, 1, seed=None) for _, s in stream for label in [int(s["cls"])]]
    assert labels.tolist() == by_hand and len(by_hand) == 11


def test_draws_do_not_depend_on_processes(root: Path) -> None:
    """A picture is augmented by its index, whoever loads it."""
    train = data.TrainingSet(data.load_split("webdataset", root).train, Preprocessing(32), "crop-flip", seed=3)

    def drawn(num_workers: int) -> list[tuple[Any, ...]]:
        loader = data.training_loader(train, 8, num_workers)
        return sorted(
            (int(label), *image.flatten().tolist()) for batch in loader for image, label in zip(*batch, strict=True)
        )

    assert drawn(0) == drawn(2)


def test_roots(root: Path) -> None:
    folder = data.load_split("webdataset", root)
    pattern = data.load_split("webdataset", root / "train" / "{000000..000004}.tar", root / "test")
    alone = data.load_split("webdataset", root / "train")
    assert isinstance(folder.test, Shards) and len(folder.test) == 11
    assert (pattern.train, pattern.test) == (folder.train, folder.test)
    assert (alone.train, alone.test) == (folder.train, None)
    assert folder.classes != alone.classes == tuple(str(i) for i in range(10))


def test_compressed_shards(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "000000.tar", sample("a", 1) + sample("b", 1))
    packed = tmp_path / "part.000000.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    train = data.load_split("webdataset", tmp_path).train
    assert isinstance(train, Shards) and len(train) == 2
    assert [index for stream in streams(train, 0, 1, 2, seed=None) for index, _ in stream] == [0, 1]
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(OptionError, match=r"data_root: .*part.000000.tar.gz"):
        data.load_split("webdataset", tmp_path)


def test_counts_are_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_shard(tmp_path / "0.tar", sample("a"))
    assert len(index_shards("data_root", [path], tmp_path / "kept")) == 1
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)
        assert len(index_shards("data_root", [path], tmp_path / "kept")) == 1
    write_shard(path, sample("a") + sample("b") + sample("c"))
    assert len(index_shards("data_root", [path], tmp_path / "kept")) == 3
    for entry in (tmp_path / "kept").iterdir():
        entry.write_text("{")
    assert len(index_shards("data_root", [path], tmp_path / "kept")) == 3
    (tmp_path / "file").touch()
    assert len(index_shards("data_root", [path], tmp_path / "file")) == 3


PICTURE = sample("a")[0][1]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.cls", b"0")], r"sample a: expected one picture \(.jpg, .*\), got none"),
        ([("a.png", PICTURE)], r"sample a: expected a label .cls, got none"),
        (
            [("a.png", PICTURE), ("a.jpg", PICTURE), ("a.cls", b"0")],
            r"sample a: .* got .jpg and .png",
        ),
        ([("a.png", PICTURE), ("a.png", PICTURE), ("a.cls", b"0")], r".*a.png: duplicate"),
        ([("a.png", PICTURE), ("a.cls", b"cat")], r"sample a: expected a class index in .cls, got b'cat'"),
        ([("a.png", PICTURE), ("a.cls", b"-1")], r".*got b'-1'"),
        ([("a.png", PICTURE), ("a.cls", b"9" * 5000)], r".*got b'9999"),
        ([("a.png", PICTURE), ("b.cls", b"0")], r"sample a: expected a label"),
        ([("readme", b"text")], "no samples"),
        ([], "no samples"),
    ],
)
def test_samples_without_picture_or_label_are_refused(tmp_path: Path, members: list[Member], message: str) -> None:
    write_shard(tmp_path / "000000.tar", [*sample("0"), *members] if members and members[0][0] != "readme" else members)
    with pytest.raises(OptionError, match=f"data_root: .*000000.tar: {message}"):
        data.load_split("webdataset", tmp_path)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "000000.tar", [member for key in "abc" for member in sample(key)])
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        headers = [member.offset for member in archive]
    cuts = [0, 100, 512, 700, headers[1], headers[3] + 100, headers[4], headers[5] + 512]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(OptionError, match=r"data_root: .*000000.tar"):
            data.load_split("webdataset", tmp_path)
    for header in headers:
        path.write_bytes(whole[:header] + b"\xff" * 512 + whole[header + 512 :])
        with pytest.raises(OptionError, match=r"data_root: .*000000.tar"):
            data.load_split("webdataset", tmp_path)
    path.write_bytes(b"not an archive" * 1000)
    with pytest.raises(OptionError, match=r"data_root: .*000000.tar"):
        data.load_split("webdataset", tmp_path)


@pytest.mark.parametrize(
    ("option", "where", "message"),
    [
        (
            "data_root",
            "{000000..000007}.tar",
            r"existing tar files, got .*05.tar, which is no file \(nor are 2 others\)",
        ),
        ("data_root", "{000000..000004.tar", "a pattern such as .*Unbalanced braces"),
        ("data_root", "{0-4}.tar", "existing tar files"),
        ("data_root", "{0..9999999999}.tar", ".*at most 1,000,000 files"),
        ("data_root", "{000000,000000}.tar", "every shard once, got .*000000.tar twice"),
        ("data_root", "nowhere", "existing tar files"),
        ("data_root", "pipe:touch executed", "existing tar files"),
        ("test_root", "000009.tar", "existing tar files"),
        ("test_root", "000000.tar", "other shards than those to learn from, got .*000000.tar again"),
        ("test_root", "../train", "other shards than those to learn from"),
    ],
)
def test_bad_roots_are_refused_before_any_work(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, where: str, message: str
) -> None:
    monkeypatch.chdir(root / "train")
    roots = {"data_root": "{000000..000004}.tar", option: where}
    options = TrainingOptions(
        data="webdataset", output_dir=tmp_path / "run", **{name: Path(value) for name, value in roots.items()}
    )
    with pytest.raises(OptionError, match=f"{option}: expected {message}"):
        train(options)
    assert not (tmp_path / "run").exists()
    assert not (root / "train" / "executed").exists()


def test_empty_folder_of_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"data_root: expected a folder of \.tar files"):
        data.load_split("webdataset", tmp_path)


def test_labels_without_a_class_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "train" / "0.tar", sample("a", 0) + sample("b", 1))
    write_shard(tmp_path / "val" / "0.tar", sample("a", 2))
    with pytest.raises(OptionError, match=r"labels of the training shards' 2 classes, got label 2 in .*val/0.tar"):
        data.load_split("webdataset", tmp_path)
    (tmp_path / "classes.txt").write_text("ant\n")
    with pytest.raises(OptionError, match=r"labels below the 1 classes of .*classes.txt, got label 1 in .*train/0.tar"):
        data.load_split("webdataset", tmp_path)


@pytest.mark.parametrize(("batch_size", "devices"), [(2, 1), (3, 14), (8, 40)])
def test_batches_of_one_picture_are_refused(shards: Shards, batch_size: int, devices: int) -> None:
    with pytest.raises(OptionError, match="batch_size: expected a size that leaves at least 2 in every batch"):
        ShardBatches(shards, marked, Steps(len(shards), batch_size, 0, devices), seed=0)


def test_options_that_do_not_belong_together_are_refused(root: Path) -> None:
    with pytest.raises(OptionError, match="data_root: expected tar files, such as shards/"):
        TrainingOptions(data="webdataset")
    with pytest.raises(OptionError, match="test_root: expected nothing unless --data is webdataset"):
        TrainingOptions(data="digits", test_root=root)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_shards_that_change_under_way_are_named(shards: Shards, tmp_path: Path, num_workers: int) -> None:
    path = write_shard(tmp_path / "000000.tar", [member for key in "abcd" for member in sample(key)])
    whole, counted = path.read_bytes(), index_shards("data_root", [path], tmp_path / "kept")

    def read() -> None:
        list(data._shard_loader(ShardBatches(counted, marked, Steps(4, 4), seed=0), num_workers))

    read()
    for damaged, message in (
        (whole[:2700], "damaged after 1 samples"),
        (whole.replace(b"\x89PNG", b"\x89GNP"), "sample [abcd]: not an image"),
        (write_shard(path, sample("a") + sample("b")).read_bytes(), "expected 4 samples as counted before, got 2"),
        (write_shard(path, [("a.png", PICTURE)]).read_bytes(), "sample a: expected a label"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ShardError, match=rf"000000.tar: {message}"):
            read()
    path.unlink()
    with pytest.raises(ShardError, match=r"000000.tar: damaged after 0 samples"):
        read()


TRAIN = ["train", "--data", "webdataset", "--resolution", "32", "--augment", "none", "--batch-size", "16"]
TRAIN += ["--schedule", "exponential", "--warmup-epochs", "0.5", "--no-progress"]


def test_training_resumes_bit_for_bit(root: Path, tmp_path: Path) -> None:
    def run(folder: str, epochs: int, *more: str) -> str:
        arguments = [*TRAIN, "--data-root", str(root), "--epochs", str(epochs), "--output-dir", str(tmp_path / folder)]
        result = CliRunner().invoke(app, [*arguments, *more])
        assert result.exit_code == 0, result.output
        return result.output

    assert "test accuracy" in run("straight", 2)
    run("resumed", 1)
    run("resumed", 2, "--resume", "last")
    expected, resumed = (load_file(tmp_path / folder / "model.safetensors") for folder in ("straight", "resumed"))
    assert [name for name in expected if not torch.equal(expected[name], resumed[name])] == []
    steps = next((tmp_path / "straight").rglob("metrics.csv")).read_text().splitlines()
    # Four steps of 13 and 14 pictures per epoch, and the header.
    assert sum(1 for row in steps[1:] if row.split(",")[steps[0].split(",").index("loss")]) == 8


def test_training_without_test_shards(root: Path, tmp_path: Path) -> None:
    pattern = str(root / "train" / "{000000..000004}.tar")
    result = CliRunner().invoke(
        app, [*TRAIN, "--data-root", pattern, "--epochs", "1", "--limit-batches", "2", "--output-dir", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    assert "epoch   1  loss" in result.output
    assert "test accuracy" not in result.output and "nan" not in result.output
    assert (tmp_path / "model.safetensors").exists()


def test_corrupt_picture_stops_the_command_and_names_the_shard(tmp_path: Path) -> None:
    members = [member for index in range(20) for member in sample(f"{index}", index % 2)]
    members[6] = ("3.png", b"no picture")
    write_shard(tmp_path / "shards" / "000000.tar", members)
    result = CliRunner().invoke(
        app, [*TRAIN, "--data-root", str(tmp_path / "shards"), "--epochs", "1", "--output-dir", str(tmp_path / "run")]
    )
    assert result.exit_code == 1
    assert "000000.tar: sample 3: not an image in a known format" in result.output
    assert "Traceback" not in result.output
