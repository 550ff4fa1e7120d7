"""What a variant costs: parameters, multiply-adds, and the memory that training holds for the backward pass."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import effnet
from effnet.config import Variant, find_variant
from effnet.model import EfficientNet
from effnet_kernels import backend_for, backends

# BatchNorm refuses a single value per channel in training; two pictures avoid that at every size.
PICTURES = 2


@dataclass(frozen=True)
class VariantCost:
    """Of training one network at its own resolution in float32, per picture.

    Attributes:
        name: as ``effnet.create_model`` takes it.
        resolution: side of the picture.
        parameters: trained numbers.
        macs: multiply-adds of the forward pass, BatchNorm's two per element among them, as fvcore counts.
        saved_bytes: what autograd holds between forward and backward, parameters not counted, unfused.
        fused_saved_bytes: the same with fused operators; None where there are none to trace.
    """

    name: str
    resolution: int
    parameters: int
    macs: int
    saved_bytes: int
    fused_saved_bytes: int | None


class _Cost(NamedTuple):
    parameters: int
    macs: int
    saved_bytes: int


def fused_missing_reason() -> str | None:
    """Why fused operators cannot be traced here, or None where they can."""
    if backend_for(torch.device("cpu")) == "cpu":
        return None
    return backends()["cpu"] or "the reference backend is set"


def variant_cost(name: str) -> VariantCost:
    """Trace the variant ``name``, fused and unfused.

    Raises:
        ValueError: there is no such variant.
    """
    variant = find_variant(name)
    unfused = _traced(variant, fused=False)
    # The operators hide their convolutions from the counter: of this trace only the saved bytes count.
    fused = _traced(variant, fused=True) if fused_missing_reason() is None else None
    return VariantCost(
        name,
        variant.resolution,
        unfused.parameters,
        unfused.macs,
        unfused.saved_bytes,
        None if fused is None else fused.saved_bytes,
    )


def _traced(variant: Variant, *, fused: bool) -> _Cost:
    """From shapes alone, nothing is computed.

    Every block of a stage after its first has the same shapes, so two of each stage are traced, and the second counts
    for all the others.
    """
    repeats = [len(stage) for stage in variant.blocks()]
    stages = tuple(replace(s, repeats=min(2, total)) for s, total in zip(variant.stages, repeats, strict=True))
    with torch.device("meta"):
        model = effnet.create_model(replace(variant, depth=1.0, stages=stages), fused=fused).train()
    assert isinstance(model, EfficientNet)
    # Meta tensors are quicker to trace, but only tensors that claim to be on the CPU reach its operators.
    with FakeTensorMode(allow_non_fake_inputs=True) if fused else nullcontext():
        costs = list(_part_costs(model.to_empty(device="cpu") if fused else model))
    times = [1, *(count for total in repeats for count in ((1,) if total == 1 else (1, total - 1))), 1]
    return _Cost(*(sum(c * n for c, n in zip(column, times, strict=True)) for column in zip(*costs, strict=True)))


def _part_costs(model: EfficientNet) -> Iterator[_Cost]:
    """Of the stem, every block in order, and head with classifier."""

    def pool_and_classify(x: Tensor) -> Tensor:
        return model.classifier(F.dropout(x.mean((2, 3)), model.dropout, model.training))

    meter = _Meter(model)
    side = model.variant.resolution
    x = torch.empty(PICTURES, model.in_channels, side, side, device=model.classifier.weight.device)
    stages = cast(Iterable[Iterable[nn.Module]], model.stages)
    x, macs, saved = meter.run(model.stem_features, x)
    yield _Cost(_count(model.stem), macs, saved)
    for block in chain.from_iterable(stages):
        x, macs, saved = meter.run(block, x)
        yield _Cost(_count(block), macs, saved)
    _, macs, saved = meter.run(lambda x: pool_and_classify(model.head(x)), x)
    yield _Cost(_count(model.head) + _count(model.classifier), macs, saved)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class SavedStorages:
    """Counts the bytes that autograd saves for backward, each storage once, without those of ``model``."""

    def __init__(self, model: nn.Module) -> None:
        # The tensors are kept, or a later storage could take over the identity of one that is gone.
        self._seen = {_identity(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self.bytes = 0

    def counted(self) -> saved_tensors_hooks:
        """The context in which what is saved is added to :attr:`bytes`."""
        return saved_tensors_hooks(self._save, lambda tensor: tensor)

    def _save(self, tensor: Tensor) -> Tensor:
        if _identity(tensor) not in self._seen:
            self._seen[_identity(tensor)] = tensor
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor


class _Meter:
    """Multiply-adds of a part, and the storages that it is the first to save for backward."""

    def __init__(self, model: nn.Module) -> None:
        self._storages = SavedStorages(model)

    def run(self, part: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, int, int]:
        """The output of ``part``, its multiply-adds and its saved bytes, the latter two per picture."""
        before = self._storages.bytes
        counter = FlopCounterMode(display=False, custom_mapping=_BATCH_NORMS)
        with counter, self._storages.counted():
            output = part(x)
        saved = self._storages.bytes - before
        return output, counter.get_total_flops() // (2 * PICTURES), saved // PICTURES


def _identity(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _batch_norm_flops(shape: torch.Size, *_arguments: Any, **_keywords: Any) -> int:
    return 2 * 2 * math.prod(shape)


_BATCH_NORMS = {
    torch.ops.aten.native_batch_norm: _batch_norm_flops,
    torch.ops.aten._native_batch_norm_legit: _batch_norm_flops,
}
