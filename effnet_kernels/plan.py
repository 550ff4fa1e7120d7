"""How the CUDA kernels would cut an MBConv block's tensors into blocks and tiles, on any GPU, without one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from effnet_kernels.arguments import KERNEL_SIZES, STRIDES, output_size, symmetric_padding
from effnet_kernels.build import plan_library

_VECTOR = {torch.float32: 4, torch.float16: 8, torch.bfloat16: 8}
_LAYOUTS = {torch.contiguous_format: "nchw", torch.channels_last: "channels_last"}


@dataclass(frozen=True)
class Device:
    """What a plan depends on: the multiprocessors of a GPU and their shared memory in bytes.

    Attributes:
        multiprocessors: how many there are.
        shared_per_block: the most that one block may have, with opt-in.
        shared_per_multiprocessor: what the blocks on one multiprocessor share.
    """

    multiprocessors: int
    shared_per_block: int
    shared_per_multiprocessor: int


_KIB = 1024
DEVICES = {
    "T4": Device(40, 64 * _KIB, 64 * _KIB),
    "A100": Device(108, 163 * _KIB, 164 * _KIB),
    "RTX 4090": Device(128, 99 * _KIB, 100 * _KIB),
    "H100": Device(132, 227 * _KIB, 228 * _KIB),
}


@dataclass(frozen=True)
class Launch:
    """One kernel launch of a plan.

    Attributes:
        name: the pass, as in docs/design.md.
        blocks: of the grid.
        threads: of a block.
        shared_bytes: of a block, where the plan decides them; 0 where they are a few constants per channel.
        tiling: what one block works on, by the names of the planner's fields.
    """

    name: str
    blocks: int
    threads: int
    shared_bytes: int
    tiling: dict[str, int]


@dataclass(frozen=True)
class Plan:
    """The launches of one MBConv block's training step; ``str()`` is a table of them."""

    device: Device
    launches: tuple[Launch, ...]

    def __str__(self) -> str:
        lines = [f"{'pass':<22}{'blocks':>9}{'threads':>9}{'shared':>9}  tiling"]
        for launch in self.launches:
            tiling = ", ".join(f"{name} {value}" for name, value in launch.tiling.items())
            shared = f"{launch.shared_bytes:,}" if launch.shared_bytes else "-"
            lines.append(f"{launch.name:<22}{launch.blocks:>9,}{launch.threads:>9}{shared:>9}  {tiling}")
        return "\n".join(lines)


def plan(
    shape: Sequence[int],
    kernel_size: int,
    stride: int = 1,
    padding: Sequence[int] | None = None,
    *,
    dtype: torch.dtype = torch.float16,
    memory_format: torch.memory_format = torch.channels_last,
    device: str | Device | torch.device = "H100",
) -> Plan:
    """The launch plan of ``mbconv_core`` in training: what the launcher itself asks the planner for.

    Args:
        shape: (N, C, H, W) of u.
        kernel_size: 3, 5 or 7.
        stride: 1 or 2.
        padding: (top, bottom, left, right); by default (K − 1) // 2 on every side.
        dtype: float32, float16 or bfloat16.
        memory_format: ``torch.channels_last`` or ``torch.contiguous_format``.
        device: a name in ``DEVICES``, a ``Device``, or a CUDA device that is here.

    Raises:
        ValueError: an argument has none of these values.
        RuntimeError: the planner was not compiled; the message says why.
    """
    if len(shape) != 4 or any(size < 1 for size in shape):
        raise ValueError(f"shape: expected (N, C, H, W), each at least 1, got {tuple(shape)}")
    if kernel_size not in KERNEL_SIZES:
        raise ValueError(f"kernel_size: expected one of {KERNEL_SIZES}, got {kernel_size!r}")
    if stride not in STRIDES:
        raise ValueError(f"stride: expected one of {STRIDES}, got {stride!r}")
    if dtype not in _VECTOR:
        raise ValueError(f"dtype: expected float32, float16 or bfloat16, got {dtype}")
    if memory_format not in _LAYOUTS:
        raise ValueError(f"memory_format: expected contiguous_format or channels_last, got {memory_format}")
    pads = symmetric_padding(kernel_size) if padding is None else tuple(padding)
    if len(pads) != 4 or any(not 0 <= p < kernel_size for p in pads):
        raise ValueError(f"padding: expected four numbers from 0 to {kernel_size - 1}, got {pads}")
    batch, channels, height, width = shape
    if height + pads[0] + pads[1] < kernel_size or width + pads[2] + pads[3] < kernel_size:
        raise ValueError(f"shape: {height}×{width} with padding {pads} is smaller than the kernel")

    limits = _device(device)
    library = plan_library()
    layout, vector = _LAYOUTS[memory_format], _VECTOR[dtype]
    out_height = output_size(height, kernel_size, stride, pads[0] + pads[1])
    out_width = output_size(width, kernel_size, stride, pads[2] + pads[3])

    def stream(name: str, pixels: int) -> Launch:
        fields = dict(library.stream_plan(limits.multiprocessors, layout, vector, batch, channels, pixels))
        return _launch(name, fields)

    def depthwise(name: str, backward: bool) -> Launch:
        fields = library.depthwise_plan(
            limits.multiprocessors,
            limits.shared_per_block,
            limits.shared_per_multiprocessor,
            layout,
            vector,
            list(shape),
            kernel_size,
            stride,
            list(pads),
            backward,
        )
        return _launch(name, dict(fields))

    inside, outside = height * width, out_height * out_width
    return Plan(
        limits,
        (
            stream("F1 statistics", inside),
            depthwise("F2 depthwise_forward", False),
            stream("F3 pool", outside),
            stream("F4 normalize", outside),
            stream("B1 backward_sums", outside),
            depthwise("B2 depthwise_backward", True),
            stream("B3 input_gradient", inside),
        ),
    )


def _launch(name: str, fields: dict[str, int]) -> Launch:
    blocks, threads, shared = fields.pop("blocks"), fields.pop("threads"), fields.pop("shared_bytes", 0)
    return Launch(name, blocks, threads, shared, fields)


def _device(device: str | Device | torch.device) -> Device:
    if isinstance(device, Device):
        return device
    if isinstance(device, str) and device in DEVICES:
        return DEVICES[device]
    try:
        named = torch.device(device)
    except RuntimeError:
        named = None
    if named is None or named.type != "cuda":
        raise ValueError(f"device: expected one of {', '.join(DEVICES)}, a Device or a CUDA device, got {device!r}")
    # Not in the stubs of every torch.
    properties: Any = torch.cuda.get_device_properties(named)
    return Device(
        properties.multi_processor_count,
        properties.shared_memory_per_block_optin,
        properties.shared_memory_per_multiprocessor,
    )
