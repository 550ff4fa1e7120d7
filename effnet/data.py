"""The data sets that ``effnet train`` knows: a table of sources, and the loaders over them."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler
from torchvision import datasets

from effnet.augmentation import AUGMENTATIONS
from effnet.errors import OptionError
from effnet.files import one_at_a_time
from effnet.images import read_image, to_rgb
from effnet.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Triple
from effnet.seeds import mixed_seed
from effnet.shards import Shards, class_names, find_shards, index_shards
from effnet.streaming import ShardBatches, Steps

SMALLEST_RESOLUTION = 32
"""Five stages of stride 2 leave one pixel of it."""

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts its files."""

DIGITS_SPLIT_SEED = 0
DIGITS_TEST_FRACTION = 0.2


class Pictures(Protocol):
    """A data set of (PIL image, class index) pairs with a length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]: ...


@dataclass(frozen=True)
class Split:
    """Training and test pictures of one source, and what its classes are called; shards may come without a test."""

    train: Pictures | Shards
    test: Pictures | Shards | None
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """One row of the table of sources.

    Attributes:
        load: from the data root and the test root, reading and, where needed, downloading.
        resolution: the network's input by default.
        mean: of its pixels from 0 to 1.
        std: of its pixels from 0 to 1.
        crop: the part of a test picture's shorter side that is kept.
        augmentation: by default, a key of ``AUGMENTATIONS``.
    """

    load: Callable[[Path, Path | None], Split]
    resolution: int
    mean: Triple
    std: Triple
    crop: float
    augmentation: str


class Digits:
    """Rows of scikit-learn's ``load_digits`` as 8×8 grey pictures."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images = np.round(images * (255 / 16)).astype(np.uint8)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.labels[index])


def _load_digits(_root: Path, _test_root: Path | None) -> Split:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train_images, test_images, train_labels, test_labels = train_test_split(
        digits.images,
        digits.target,
        test_size=DIGITS_TEST_FRACTION,
        random_state=DIGITS_SPLIT_SEED,
        stratify=digits.target,
    )
    classes = tuple(str(name) for name in digits.target_names)
    return Split(Digits(train_images, train_labels), Digits(test_images, test_labels), classes)


def _load_fashion_mnist(root: Path, _test_root: Path | None) -> Split:
    with one_at_a_time(root):
        if DEBIAN_FASHION_MNIST.is_dir():
            _unpack_fashion_mnist(DEBIAN_FASHION_MNIST, root / "FashionMNIST" / "raw")
        train = datasets.FashionMNIST(root, train=True, download=True)
        test = datasets.FashionMNIST(root, train=False, download=True)
    return Split(train, test, tuple(train.classes))


def _unpack_fashion_mnist(packed: Path, raw: Path) -> None:
    """Unpack the IDX files to where torchvision looks for them; a file appears there complete or not at all."""
    raw.mkdir(parents=True, exist_ok=True)
    for archive in sorted(packed.glob("*-ubyte.gz")):
        target = raw / archive.stem
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=raw) as partial:
                unpacked = datasets.utils.extract_archive(str(archive), partial)
                os.replace(unpacked, target)


def _load_cifar(data_set: Callable[..., Any], root: Path) -> Split:
    with one_at_a_time(root):
        train = data_set(root, train=True, download=True)
        test = data_set(root, train=False, download=True)
    return Split(train, test, tuple(train.classes))


def _load_folder(root: Path, _test_root: Path | None) -> Split:
    """``root/train/<class>/…`` and ``root/val/<class>/…`` or ``root/test/<class>/…``."""
    held_out = next((name for name in ("val", "test") if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or held_out is None:
        found = ", ".join(sorted(entry.name for entry in root.iterdir())) or "nothing"
        raise OptionError("data_root", "a folder with train/ and val/ or test/", f"{root} with {found}")
    train, test = _image_folder(root / "train"), _image_folder(root / held_out)
    if train.classes != test.classes:
        missing = ", ".join(sorted(set(train.classes) ^ set(test.classes)))
        raise OptionError("data_root", f"the same classes in train/ and {held_out}/", f"only in one: {missing}")
    return Split(train, test, tuple(train.classes))


def _image_folder(folder: Path) -> datasets.ImageFolder:
    try:
        return datasets.ImageFolder(str(folder), loader=cast(Any, read_image))
    except FileNotFoundError as error:
        raise OptionError("data_root", "a folder of images for each class", f"{folder}: {error}") from error


def _load_webdataset(root: Path, test_root: Path | None) -> Split:
    """Shards that ``root`` names and, as a test, ``test_root``; or of ``root/train`` and ``root/val`` or ``root/test``.

    Class names are the lines of ``classes.txt`` in ``root``, or in the first training shard's folder.
    """
    training = root
    if os.path.isdir(root / "train"):
        training = root / "train"
        test_root = test_root or next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    paths = find_shards("data_root", training)
    test_paths = [] if test_root is None else find_shards("test_root", test_root)
    if shared := set(paths) & set(test_paths):
        raise OptionError("test_root", "other shards than those to learn from", f"{min(shared)} again")
    cache = default_data_root() / "webdataset"
    train = index_shards("data_root", paths, cache)
    test = index_shards("test_root", test_paths, cache) if test_paths else None
    folder = root if os.path.isdir(root) else paths[0].parent
    return Split(train, test, class_names("data_root", folder, train, test))


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "digits": Source(_load_digits, 32, (0.309,) * 3, (0.349,) * 3, 1.0, "affine"),
        "fashion-mnist": Source(_load_fashion_mnist, 32, (0.284,) * 3, (0.344,) * 3, 1.0, "crop-flip"),
        "cifar10": Source(
            lambda root, _: _load_cifar(datasets.CIFAR10, root),
            32,
            (0.4914, 0.4822, 0.4465),
            (0.2470, 0.2435, 0.2616),
            1.0,
            "crop-flip",
        ),
        "cifar100": Source(
            lambda root, _: _load_cifar(datasets.CIFAR100, root),
            32,
            (0.5071, 0.4865, 0.4409),
            (0.2673, 0.2564, 0.2762),
            1.0,
            "crop-flip",
        ),
        "folder": Source(_load_folder, 224, IMAGENET_MEAN, IMAGENET_STD, 0.875, "resized-crop"),
        "webdataset": Source(_load_webdataset, 224, IMAGENET_MEAN, IMAGENET_STD, 0.875, "resized-crop"),
    }
)
"""What ``--data`` may name."""


def default_data_root() -> Path:
    """Where downloads go unless ``--data-root`` says otherwise: the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "effnet"


def source_named(name: str) -> Source:
    """The row of the table.

    Raises:
        OptionError: there is no such source.
    """
    if name not in SOURCES:
        raise OptionError("data", f"one of {', '.join(SOURCES)}", repr(name))
    return SOURCES[name]


def load_split(name: str, root: Path | None, test_root: Path | None = None) -> Split:
    """Read the source ``name``, downloading into ``root`` (by default the user's cache) what is not there.

    Raises:
        OptionError: there is no such source, or ``root`` or ``test_root`` is not what it needs.
    """
    source = source_named(name)
    check_roots(name, root, test_root)
    root = default_data_root() if root is None else root.expanduser()
    return source.load(root, None if test_root is None else test_root.expanduser())


def check_roots(name: str, root: Path | None, test_root: Path | None) -> None:
    """That the source ``name`` has the roots it needs, as far as a glance can tell.

    Raises:
        OptionError: it has not, or has one it knows nothing to do with.
    """
    if name == "folder" and (root is None or not os.path.isdir(root.expanduser())):
        got = "nothing" if root is None else f"{root}: no such folder"
        raise OptionError("data_root", "a folder with train/ and val/ or test/", got)
    if name == "webdataset" and root is None:
        raise OptionError("data_root", "tar files, such as shards/{000000..000127}.tar, or their folder", "nothing")
    if name != "webdataset" and test_root is not None:
        raise OptionError("test_root", "nothing unless --data is webdataset", test_root)


class TrainingSet(Dataset[tuple[Tensor, int]]):
    """Augmented, normalised pictures, drawn by (epoch, index).

    Every draw depends on (seed, epoch, index) alone: not on the number of workers, on what was drawn before, or on
    whether training was resumed. The default generator is left as it was.
    """

    def __init__(self, pictures: Pictures | Shards, preprocessing: Preprocessing, augmentation: str, seed: int) -> None:
        self.pictures = pictures
        self.preprocessing = preprocessing
        self.augment = AUGMENTATIONS[augmentation](preprocessing)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = draw
        image, label = _by_index(self.pictures)[index]
        return self.prepare(epoch, index, image), label

    def prepare(self, epoch: int, index: int, image: Image.Image) -> Tensor:
        """What the network sees of ``image``, the picture ``index``."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed_seed(self.seed, epoch, index))
            augmented = self.augment(to_rgb(image))
        return self.preprocessing.normalise(augmented)


class TestSet(Dataset[tuple[Tensor, int]]):
    """Preprocessed pictures, by index."""

    __test__ = False  # the name is not pytest's to collect

    def __init__(self, pictures: Pictures | Shards, preprocessing: Preprocessing) -> None:
        self.pictures = pictures
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = _by_index(self.pictures)[index]
        return self.prepare(0, index, image), label

    def prepare(self, _epoch: int, _index: int, image: Image.Image) -> Tensor:
        """What the network sees of ``image``, the same in every epoch."""
        return self.preprocessing(to_rgb(image))


def _by_index(pictures: Pictures | Shards) -> Pictures:
    assert not isinstance(pictures, Shards), "shards are streamed, not indexed"
    return pictures


class DrawSampler(DistributedSampler[Any]):
    """The shuffled order of one epoch as (epoch, index); a function of the seed and the epoch."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in super().__iter__())


class EvenBatches(Sampler[list[int]]):
    """Every picture once among all processes, in order, in equally many batches for each of them.

    A process that was done before the others would leave them waiting for it. Batches differ by one picture at most,
    and are smaller than ``batch_size`` rather than one batch fewer.
    """

    def __init__(self, pictures: int, batch_size: int, rank: int, world_size: int) -> None:
        self.batches = -(-pictures // (batch_size * world_size))
        total = self.batches * world_size
        ends = [pictures * batch // total for batch in range(total + 1)]
        self._ranges = [range(ends[batch], ends[batch + 1]) for batch in range(rank, total, world_size)]

    def __iter__(self) -> Iterator[list[int]]:
        return map(list, self._ranges)

    def __len__(self) -> int:
        return self.batches


def training_loader(
    data: TrainingSet, batch_size: int, num_workers: int, *, rank: int = 0, world_size: int = 1
) -> DataLoader[tuple[Tensor, int]]:
    """Whole batches in a fresh order every epoch; of shards, every picture in batches of nearly the same size."""
    if isinstance(data.pictures, Shards):
        steps = Steps(len(data), batch_size, rank, world_size)
        return _shard_loader(ShardBatches(data.pictures, data.prepare, steps, data.seed), num_workers)
    return DataLoader(
        data,
        batch_size,
        sampler=DrawSampler(data, world_size, rank, shuffle=True, seed=data.seed, drop_last=True),
        drop_last=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        # A generator of its own, so that making an iterator draws nothing from the one that drop-connect uses.
        generator=torch.Generator(),
    )


def test_loader(
    data: TestSet, batch_size: int, num_workers: int, *, rank: int, world_size: int
) -> DataLoader[tuple[Tensor, int]]:
    """Every test picture once, in one of the processes; there have to be as many pictures as processes."""
    if isinstance(data.pictures, Shards):
        steps = Steps(len(data), batch_size, rank, world_size)
        return _shard_loader(ShardBatches(data.pictures, data.prepare, steps, None), num_workers)
    return DataLoader(
        data,
        batch_sampler=EvenBatches(len(data), batch_size, rank, world_size),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


test_loader.__test__ = False  # type: ignore[attr-defined]


def _shard_loader(batches: ShardBatches, num_workers: int) -> DataLoader[Any]:
    """One device's batches; Lightning tells the sampler the epoch, and leaves a distributed one as it is."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=DrawSampler(cast(Any, range(len(batches))), num_replicas=1, rank=0, shuffle=False),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )
