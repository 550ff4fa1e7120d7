"""Tar shards in WebDataset's format: which files a pattern names, and what each of them holds.

Every shard is read once before training, headers and labels only: an epoch that shows each picture exactly once, in
equally many steps on every device, needs to know how many there are. What was found is kept in a cache.
"""

import hashlib
import itertools
import json
import math
import os
import re
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from effnet.errors import OptionError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "pgm", "ppm")
LABEL_EXTENSION = "cls"
ARCHIVE_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
CLASSES_FILE = "classes.txt"
MOST_SHARDS = 1_000_000
TAR_BLOCK = 512

_INTEGER_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
_METADATA = re.compile(r"__[^/]*__($|/)")  # WebDataset passes over such members


class ShardError(ValueError):
    """A shard that is damaged, or holds something else than pictures with labels; the message names it."""


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        path: absolute.
        samples: pictures in it.
        largest_label: of them.
    """

    path: str
    samples: int
    largest_label: int


@dataclass(frozen=True)
class Shards:
    """The shards of one part of the data, in the order of their names; has the length of a data set."""

    shards: tuple[Shard, ...]

    def __len__(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def largest_label(self) -> int:
        return max(shard.largest_label for shard in self.shards)


def find_shards(option: str, where: Path) -> list[Path]:
    """The tar files that ``where`` names: a pattern such as ``shards/{000000..000127}.tar``, or a folder of them.

    Raises:
        OptionError: names ``option``; the pattern is none, or a file is missing or named twice.
    """
    if os.path.isdir(where):
        folder = Path(os.path.abspath(where))
        found = sorted(path for path in folder.iterdir() if path.name.lower().endswith(ARCHIVE_ENDINGS))
        if not found:
            raise OptionError(option, "a folder of .tar files", f"{where} without any")
        return found
    named = [Path(os.path.abspath(name)) for name in _expand(option, os.fspath(where))]
    missing = [path for path in named if not os.path.isfile(path)]
    if missing:
        got = f"{missing[0]}, which is no file" + (f" (nor are {len(missing) - 1} others)" if missing[1:] else "")
        raise OptionError(option, "existing tar files", got)
    if len(set(named)) < len(named):
        twice = next(path for path in named if named.count(path) > 1)
        raise OptionError(option, "every shard once", f"{twice} twice")
    return named


def _expand(option: str, pattern: str) -> list[str]:
    from braceexpand import braceexpand

    expected = "a pattern such as shards/{000000..000127}.tar"
    sizes = (abs(int(last) - int(first)) + 1 for first, last in _INTEGER_RANGE.findall(pattern))
    if math.prod(sizes) > MOST_SHARDS:
        raise OptionError(option, f"{expected} for at most {MOST_SHARDS:,} files", repr(pattern))
    try:
        return list(itertools.islice(braceexpand(pattern), MOST_SHARDS))
    except ValueError as error:
        raise OptionError(option, expected, f"{pattern!r}: {error}") from error


def index_shards(option: str, paths: Iterable[Path], cache: Path) -> Shards:
    """What ``paths`` hold, from ``cache`` where a file's size and time are as they were.

    Raises:
        OptionError: names ``option`` and the file that is damaged, or whose samples are not one picture and one label.
    """
    try:
        return Shards(tuple(_cached(path, cache) for path in paths))
    except ShardError as error:
        raise OptionError(option, "tar files of pictures, each with its label as .cls", str(error)) from error


def _cached(path: Path, cache: Path) -> Shard:
    state = path.stat()
    stamp = {"size": state.st_size, "modified": state.st_mtime_ns}
    entry = cache / f"{hashlib.sha256(os.fsencode(path)).hexdigest()}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):
        kept = json.loads(entry.read_text())
        if kept["stamp"] == stamp:
            return Shard(**kept["shard"])
    shard = _scan(path)
    # What cannot be kept is read again the next time.
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache, suffix=".part", delete=False) as file:
            json.dump({"stamp": stamp, "shard": asdict(shard)}, file)
        os.replace(file.name, entry)
    return shard


def _scan(path: Path) -> Shard:
    from webdataset.tariterators import group_by_keys

    samples, largest = 0, -1
    try:
        for sample in group_by_keys(_members(path)):
            image_extension(sample)
            largest = max(largest, label_of(sample))
            samples += 1
    except ShardError:
        raise
    except (ValueError, EOFError, OSError, tarfile.TarError) as error:
        raise ShardError(f"{path}: {error.args[0] if error.args else error!r}") from error
    if samples == 0:
        raise ShardError(f"{path}: no samples")
    return Shard(os.fspath(path), samples, largest)


def _members(path: Path) -> Iterator[dict[str, Any]]:
    """Names, and the contents of labels, as WebDataset passes them on."""
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isreg() and not _METADATA.match(member.name):
                is_label = member.name.lower().endswith("." + LABEL_EXTENSION)
                content = archive.extractfile(member) if is_label else None
                data = b"" if content is None else content.read()
                yield {"fname": member.name, "data": data, "__url__": os.fspath(path)}
        # tarfile takes a header that it cannot read for the end of the archive.
        file = archive.fileobj
        assert file is not None
        file.seek(archive.offset)
        if file.read(TAR_BLOCK) != bytes(TAR_BLOCK):
            raise ShardError(f"{path}: damaged or cut short at byte {archive.offset:,}")


def image_extension(sample: dict[str, Any]) -> str:
    """Under which key of WebDataset's ``sample`` the picture is.

    Raises:
        ShardError: there is no picture, or more than one.
    """
    found = [name for name in IMAGE_EXTENSIONS if name in sample]
    if len(found) != 1:
        got = " and ".join(f".{name}" for name in found) or "none"
        raise ShardError(f"{described(sample)}: expected one picture (.{', .'.join(IMAGE_EXTENSIONS)}), got {got}")
    return found[0]


def label_of(sample: dict[str, Any]) -> int:
    """The class index in ``.cls``.

    Raises:
        ShardError: there is none, or it is no number from 0.
    """
    if LABEL_EXTENSION not in sample:
        raise ShardError(f"{described(sample)}: expected a label .{LABEL_EXTENSION}, got none")
    text = sample[LABEL_EXTENSION].strip()
    if not text.isdigit() or len(text) > 9:
        raise ShardError(f"{described(sample)}: expected a class index in .{LABEL_EXTENSION}, got {text[:40]!r}")
    return int(text)


def described(sample: dict[str, Any]) -> str:
    """Shard and name of WebDataset's ``sample``."""
    return f"{sample['__url__']}: sample {sample['__key__']}"


def class_names(option: str, folder: Path, train: Shards, test: Shards | None) -> tuple[str, ...]:
    """The lines of ``classes.txt`` in ``folder``, or where there is none the class indices themselves.

    Raises:
        OptionError: names ``option``; a label has no class.
    """
    file = folder / CLASSES_FILE
    if file.is_file():
        names: Sequence[str] = [line.strip() for line in file.read_text().splitlines() if line.strip()]
        expected = f"labels below the {len(names)} classes of {file}"
    else:
        names = [str(index) for index in range(train.largest_label + 1)]
        expected = f"labels of the training shards' {len(names)} classes"
    for shard in train.shards + (() if test is None else test.shards):
        if shard.largest_label >= len(names):
            raise OptionError(option, expected, f"label {shard.largest_label} in {shard.path}")
    return tuple(names)
