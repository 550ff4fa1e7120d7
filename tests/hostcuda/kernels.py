"""The project's CUDA sources (kernels, planners, launches, registration), built to run on the CPU."""

import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from hostcuda.build import FOLDER, build

CSRC = FOLDER.parents[1] / "csrc"
OPERATORS = "effnet_kernels"


def sources() -> list[Path]:
    """Everything that goes into the CUDA library, and its schemas."""
    found = [*CSRC.glob("**/*.cu"), *CSRC.glob("*/cuda*.cpp")]
    return [FOLDER / "schemas.cpp", *sorted(found)]


@cache
def load(sanitize: bool = False) -> ModuleType:
    """The module that runs them; ``torch.ops`` has the operators under the module's name, on CPU tensors."""
    flags = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
    return build("effnet_hostcuda", sources(), include_dirs=[CSRC], flags=flags, sanitize=sanitize)


@contextlib.contextmanager
def serving(module: ModuleType) -> Iterator[None]:
    """The public operators run the kernels of ``module`` on CPU tensors; afterwards the CPU's own again."""
    namespace = f"{module.__name__}::"
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith(namespace)]
    with torch.library._scoped_library(OPERATORS, "IMPL") as library:
        for name in names:
            operator = name.removeprefix(namespace)
            compiled = getattr(getattr(torch.ops, module.__name__), operator).default
            library.impl(operator, compiled, "CPU", allow_override=True)
        yield
