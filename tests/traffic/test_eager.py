"""PyTorch's own traffic, which the fused operators are compared with, is what PyTorch dispatches."""

from collections import Counter

import pytest
from torch import Tensor

from traffic import eager
from traffic.budget import Tensors
from traffic.shapes import Shape

SMALL = Shape(channels=6, size=8, kernel=3, stride=2, squeezed=2, bn1=True)

# Calls that go over a tensor twice, and how much more that is than each argument and result once.
SECOND_READ = {
    "native_batch_norm": lambda tensors: tensors[:1],
    "native_batch_norm_backward": lambda tensors: tensors[:2],
    "convolution_backward": lambda tensors: tensors[:1],
}


def moved(call: eager.Dispatched) -> Tensors:
    """The tensors of activation size that a call reads and writes; an expanded one is no such tensor in memory."""
    images, channels = 2, SMALL.channels
    again = SECOND_READ.get(call.op, lambda tensors: ())(call.tensors)
    sizes = Counter(t.numel() for t in (*call.tensors, *again) if is_activation(t))
    return Tensors(sizes[images * channels * SMALL.size**2], sizes[images * channels * SMALL.out_size**2])


def is_activation(t: Tensor) -> bool:
    return t.dim() == 4 and t.shape[2] > 1 and t.shape[0] == 2 and 0 not in t.stride()


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_every_call_is_in_the_table(direction: str) -> None:
    calls = dict(zip(("forward", "backward"), eager.dispatched(SMALL), strict=True))[direction]
    table = {"forward": eager.FORWARD, "backward": eager.BACKWARD}[direction]
    big = [(call.op, traffic) for call in calls if (traffic := moved(call)) != Tensors()]
    assert Counter((op.partition(".")[0], traffic) for op, traffic in big) == Counter(
        (call.op, call.moved) for call in table
    )


def test_sum() -> None:
    assert eager.block(SMALL) == Tensors(ein=16, eout=29)
    assert sum((c.moved for c in eager.FORWARD), Tensors()) == Tensors(ein=6, eout=9)
