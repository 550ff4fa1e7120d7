"""The memory that the CPU kernels keep from one call to the next."""

import torch

from effnet_kernels.backend import backends


def release_cached_memory() -> int:
    """Give back the memory that large activations on CPU had, and that waits for the next ones; its size in bytes.

    A training step asks for the same large tensors again and again; memory fresh from the system costs more to map and
    clear than most passes cost to fill it. So it is kept, about as much as was once in use at the same time. Call this
    where a process goes on to other work.
    """
    if backends()["cpu"] is not None:
        return 0
    return int(torch.ops.effnet_kernels.release_cached_memory())
