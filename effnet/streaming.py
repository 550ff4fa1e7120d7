"""Batches streamed from tar shards through ``webdataset``: each picture exactly once per epoch.

Laid end to end in the epoch's order, the shards are one long tape of known length. Every device takes an equal stretch
of it, and every loading process a stretch of that: a shard is opened by one process, or by the two whose stretches
meet in it, whatever the numbers of shards, devices and processes.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from effnet.errors import OptionError
from effnet.images import UnreadableImageError, decode_image
from effnet.seeds import mixed_seed
from effnet.shards import Shard, ShardError, Shards, described, image_extension, label_of

SHUFFLE_BUFFER = 1000
"""Pictures, still encoded, among which each loading process draws."""

Prepare = Callable[[int, int, Image.Image], Tensor]
"""From (epoch, index, picture) to what the network sees."""


@dataclass(frozen=True)
class Stretch:
    """A part of one shard: its samples from ``start`` to before ``stop``; ``first`` is the shard's first index."""

    shard: Shard
    first: int
    start: int
    stop: int


@dataclass(frozen=True)
class Steps:
    """How ``samples`` are shared out: over devices, and each device's over its steps, as evenly as they go.

    Devices differ by at most one picture and take equally many steps, or a device would wait for another for ever.
    Batches of a device differ by at most one picture, so that each weighs the same: a last batch of a few pictures
    would be a step as long as the others from statistics that are mostly noise.
    """

    samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    @property
    def count(self) -> int:
        most = -(-self.samples // self.world_size)
        return -(-most // self.batch_size)

    @property
    def smallest(self) -> int:
        """Pictures in the smallest batch of any device."""
        return self.samples // self.world_size // self.count

    def pictures(self, steps: range) -> int:
        """Of this device, in all of ``steps``."""
        count, samples = self.count, self._device(self.rank + 1) - self._device(self.rank)
        return sum((step + 1) * samples // count - step * samples // count for step in steps)

    def bounds(self, worker: int, workers: int) -> tuple[int, int]:
        """Where on the tape the pictures of this device's process ``worker`` of ``workers`` begin and end.

        Process w loads the steps w, w + workers, w + 2 workers, and so on.
        """
        before = sum(self.pictures(range(earlier, self.count, workers)) for earlier in range(worker))
        start = self._device(self.rank) + before
        return start, start + self.pictures(range(worker, self.count, workers))

    def _device(self, rank: int) -> int:
        return rank * self.samples // self.world_size


class ShardBatches(Dataset[tuple[Tensor, Tensor]]):
    """The batches of one device, drawn by (epoch, step).

    In a loader the process w of W is asked for the steps w, w + W, … in this order, which is the order of its stream;
    any other step is found by winding the stream there.

    Args:
        shards: where the pictures are.
        prepare: from picture to tensor.
        steps: this device's part of them.
        seed: of the order of shards and of the pictures in the buffer; None is the order of the files.

    Raises:
        OptionError: so few pictures that a batch would be empty, or in training hold only one, of which BatchNorm
            cannot take a variance.
    """

    def __init__(self, shards: Shards, prepare: Prepare, steps: Steps, seed: int | None) -> None:
        least = 1 if seed is None else 2
        if steps.smallest < least:
            came = f"{steps.batch_size}, which divides {steps.samples} pictures on {steps.world_size} devices into less"
            raise OptionError("batch_size", f"a size that leaves at least {least} in every batch", came)
        self.shards = shards
        self.prepare = prepare
        self.steps = steps
        self.seed = seed
        self._stream: Iterator[tuple[int, dict[str, Any]]] = iter(())
        self._position: tuple[int, int] | None = None

    def __len__(self) -> int:
        return self.steps.count

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, step = draw
        info = get_worker_info()
        workers = 1 if info is None else info.num_workers
        if self._position != (epoch, step):
            self._wind_to(epoch, step, workers)
        samples = self._take(self.steps.pictures(range(step, step + 1)))
        self._position = epoch, step + workers
        images = torch.stack([self._prepared(epoch, index, sample) for index, sample in samples])
        return images, torch.tensor([label_of(sample) for _index, sample in samples])

    def _wind_to(self, epoch: int, step: int, workers: int) -> None:
        worker = step % workers
        self._stream = self.stream(epoch, worker, workers)
        self._take(self.steps.pictures(range(worker, step, workers)))

    def _take(self, count: int) -> list[tuple[int, dict[str, Any]]]:
        return list(itertools.islice(self._stream, count))

    def stream(self, epoch: int, worker: int, workers: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """(index, sample) of every picture that a process loads in an epoch; indices count through the files."""
        from webdataset import shuffle

        start, stop = self.steps.bounds(worker, workers)
        samples = itertools.chain.from_iterable(map(_read, self._stretches(epoch, start, stop)))
        if self.seed is None:
            return samples
        rng = random.Random(mixed_seed(self.seed, epoch, self.steps.rank, worker))
        return shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER, rng=rng)(samples)

    def _stretches(self, epoch: int, start: int, stop: int) -> Iterator[Stretch]:
        """What lies on the epoch's tape from ``start`` to ``stop``."""
        shards = self.shards.shards
        firsts = list(itertools.accumulate((shard.samples for shard in shards), initial=0))
        begin = 0
        for position in self._order(epoch):
            shard = shards[position]
            inside = max(start - begin, 0), min(stop - begin, shard.samples)
            if inside[0] < inside[1]:
                yield Stretch(shard, firsts[position], *inside)
            begin += shard.samples

    def _order(self, epoch: int) -> Sequence[int]:
        order = list(range(len(self.shards.shards)))
        if self.seed is not None:
            random.Random(mixed_seed(self.seed, epoch)).shuffle(order)
        return order

    def _prepared(self, epoch: int, index: int, sample: dict[str, Any]) -> Tensor:
        try:
            image = decode_image(sample[image_extension(sample)], described(sample))
        except UnreadableImageError as error:
            raise ShardError(str(error)) from error
        return self.prepare(epoch, index, image)


def _read(stretch: Stretch) -> Iterator[tuple[int, dict[str, Any]]]:
    """(index, sample) of a stretch, read through ``webdataset``.

    Raises:
        ShardError: names the shard, which has changed since it was counted.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander

    path = stretch.shard.path
    read = stretch.start
    try:
        # Opened here: to webdataset a file's name may be a command.
        with open(path, "rb") as file:
            samples = group_by_keys(tar_file_expander(iter([{"url": path, "stream": file}])))
            for sample in itertools.islice(samples, stretch.start, stretch.stop):
                label_of(sample), image_extension(sample)
                yield stretch.first + read, sample
                read += 1
    except ShardError:
        raise
    except Exception as error:
        # webdataset hands on whatever tarfile and the decompressors trip over, with arguments of its own.
        reason = error.args[0] if error.args else repr(error)
        raise ShardError(f"{path}: damaged after {read} samples: {reason}") from error
    if read < stretch.stop:
        raise ShardError(f"{path}: expected {stretch.shard.samples} samples as counted before, got {read}")
