"""What there is to measure, as data: an operator, an MBConv block or a network at one size, in one mode and dtype."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

import torch

from effnet.config import find_variant
from effnet.doctor.workload import OPERATORS, BlockShape

Kind = Literal["operator", "block", "model"]
Mode = Literal["training", "inference"]

KINDS: tuple[Kind, ...] = ("operator", "block", "model")
MODES: tuple[Mode, ...] = ("training", "inference")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MODELS = ("efficientnet_b0", "efficientnet_b4", "efficientnet_lite0", "efficientnetv2_s")
BLOCK_VARIANT = "efficientnet_b0"
BLOCK_RESOLUTION = 224


@dataclass(frozen=True)
class Place:
    """A block of B0: ``stage`` and ``index`` number it, ``shape`` is what lies between its 1×1 convolutions."""

    stage: int
    index: int
    in_channels: int
    shape: BlockShape


@dataclass(frozen=True)
class Case:
    """One group of the benchmark: every side computes the same thing, and is timed in the same rounds.

    Attributes:
        kind: ``operator``, ``block`` or ``model``.
        name: of the operator or of the variant.
        batch: pictures.
        image: side of the network's input; of the operator's or the block's input where ``kind`` is one of these.
        dtype: ``float32``, or ``bfloat16``, under autocast with float32 weights.
        mode: ``training``, forward and backward, or ``inference``.
        threads: of every side.
        device: ``cpu`` or a CUDA device.
        shape: of an operator.
        place: (stage, index) of a block in :data:`BLOCK_VARIANT`.
    """

    kind: Kind
    name: str
    batch: int
    image: int
    dtype: str = "float32"
    mode: Mode = "training"
    threads: int = 1
    device: str = "cpu"
    shape: BlockShape | None = None
    place: tuple[int, int] | None = None

    @property
    def training(self) -> bool:
        return self.mode == "training"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def size(self) -> str:
        """Batch and input, as a reader of a table needs them."""
        if self.shape is None:
            return f"{self.batch}×{self.image}²"
        convolution = self.kind == "block" or "w" in OPERATORS[self.name].tensors(self.shape, self.batch)
        return f"{self.batch}×{self.shape if convolution else self.shape.image}"

    @property
    def title(self) -> str:
        """What is computed; unique among the cases of a run."""
        name = f"MBConv of {self.name}" if self.kind == "block" else self.name
        where = f"{self.threads} thread{'s' * (self.threads > 1)}" if self.device == "cpu" else self.device
        return f"{name} {self.size} {self.dtype} {self.mode}, {where}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Case":
        shape, place = values.pop("shape"), values.pop("place")
        return cls(
            **values,
            shape=None if shape is None else BlockShape(**shape),
            place=None if place is None else (place[0], place[1]),
        )


@dataclass(frozen=True)
class Conditions:
    """Everything that is varied but what is computed; the product of the lists."""

    batches: Sequence[int] = (1, 8)
    dtypes: Sequence[str] = tuple(DTYPES)
    modes: Sequence[Mode] = MODES
    threads: Sequence[int] = (1,)
    device: str = "cpu"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for threads, mode, dtype, batch in product(self.threads, self.modes, self.dtypes, self.batches):
            yield {"threads": threads, "mode": mode, "dtype": dtype, "batch": batch, "device": self.device}


def places() -> tuple[Place, ...]:
    """The first block of B0 with each distinct shape, in the network's order."""
    found: dict[BlockShape, Place] = {}
    side = BLOCK_RESOLUTION // 2
    for stage, blocks in enumerate(find_variant(BLOCK_VARIANT).blocks()):
        for index, block in enumerate(blocks):
            shape = BlockShape(block.expanded_channels, side, block.kernel_size, block.stride, block.expand_ratio)
            found.setdefault(shape, Place(stage, index, block.in_channels, shape))
            side = shape.side_out
    return tuple(found.values())


def operator_shapes(name: str) -> tuple[BlockShape, ...]:
    """The distinct shapes of B0 for the operator ``name``; without a convolution only the input counts."""
    convolution = "w" in OPERATORS[name].tensors(places()[0].shape, 1)
    distinct = {str(place.shape) if convolution else place.shape.image: place.shape for place in places()}
    return tuple(distinct.values())


def operator_cases(conditions: Conditions, names: Iterable[str] = tuple(OPERATORS)) -> list[Case]:
    """Every operator at every distinct shape of B0."""
    return [
        Case("operator", name, image=shape.side, shape=shape, **condition)
        for name in names
        for shape in operator_shapes(name)
        for condition in conditions
    ]


def block_cases(conditions: Conditions) -> list[Case]:
    """The MBConv block that B0 has in its middle: 5×5, stride 1, with a skip."""
    place = next(p for p in places() if p.shape.kernel == 5 and p.shape.stride == 1)
    return [
        Case(
            "block", BLOCK_VARIANT, image=place.shape.side, shape=place.shape, place=(place.stage, place.index), **each
        )
        for each in conditions
    ]


def model_cases(conditions: Conditions, names: Iterable[str] = MODELS, image: int | None = None) -> list[Case]:
    """Whole networks, at their own resolution unless ``image`` says otherwise."""
    return [
        Case("model", name, image=image or find_variant(name).resolution, **condition)
        for name in names
        for condition in conditions
    ]
