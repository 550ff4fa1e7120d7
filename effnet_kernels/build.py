"""How the compiled libraries were built, what they run on, and why one of them is missing."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_PACKAGE = Path(__file__).parent
_REPORT = _PACKAGE / "_build.json"


@dataclass(frozen=True)
class BuildFacts:
    """Versions the libraries were built with, and what they run with in this process.

    Attributes:
        version: of this package.
        torch_version: of the torch whose headers were compiled; any torch of 2.10 or later serves at run time.
        torch_cuda_version: the CUDA version of that torch, or None for a CPU build.
        compiler: the C++ compiler and its version.
        nvcc_version: None where the CUDA library was not built.
        cuda_architectures: ``sm_*`` (machine code) and ``compute_*`` (PTX); empty where the CUDA library was not built.
        cpu_capabilities: the instruction sets that the CPU library holds code for.
        cpu_capability: the one chosen at run time (``EFFNET_KERNELS_CPU_CAPABILITY`` may lower it).
        processors: that this machine has.
        threads: that the CPU kernels share, which is ``torch.get_num_threads()``.
    """

    version: str
    torch_version: str
    torch_cuda_version: str | None
    compiler: str
    nvcc_version: str | None
    cuda_architectures: tuple[str, ...]
    cpu_capabilities: tuple[str, ...]
    cpu_capability: str
    processors: int
    threads: int


def build_facts() -> BuildFacts:
    """The facts of this installation.

    Raises:
        RuntimeError: nothing was compiled; the message says why. Or ``EFFNET_KERNELS_CPU_CAPABILITY`` is none of the
            instruction sets.
    """
    library = plan_library()
    facts = library.facts()
    return BuildFacts(
        version=facts["version"],
        torch_version=facts["torch_version"],
        torch_cuda_version=facts["torch_cuda_version"] or None,
        compiler=facts["compiler"],
        nvcc_version=facts["nvcc_version"] or None,
        cuda_architectures=tuple(facts["cuda_architectures"]),
        cpu_capabilities=tuple(facts["cpu_capabilities"]),
        cpu_capability=library.cpu_capability(),
        processors=library.processors(),
        threads=torch.get_num_threads(),
    )


def plan_library() -> ModuleType:
    """The compiled module of launch plans and build facts.

    Raises:
        RuntimeError: it was not compiled or does not load; the message says why.
    """
    if not any(_PACKAGE.glob("_plan.*.so")):
        raise RuntimeError(f"no build facts: {missing_reason('_plan')}")
    try:
        from effnet_kernels import _plan
    except ImportError as error:
        raise RuntimeError(f"no build facts: _plan did not load: {error}") from error
    return _plan


def autograd_problem() -> str | None:
    """Why ``_autograd``, the operators' backward in C++, cannot serve this torch, or None where it can.

    Other than the libraries of the stable ABI it serves the torch that it was built with alone. Elsewhere Python does
    the same, in more time.
    """
    if not (_PACKAGE / "_autograd.abi3.so").exists():
        return missing_reason("_autograd")
    try:
        built_with = plan_library().facts()["torch_version"]
    except RuntimeError as error:
        return f"_autograd: which torch it was built with is not known: {error}"
    if built_with != torch.__version__:
        return f"_autograd was built with torch {built_with}, this is {torch.__version__}"
    return None


def missing_reason(library: str) -> str:
    """Why ``library`` (``_C``, ``_C_cuda``, …) is not in the package's folder, as the build recorded it."""
    report: dict[str, Any] = json.loads(_REPORT.read_text()) if _REPORT.exists() else {}
    reason = report.get(library) or "these sources were not installed (pip install .)"
    return f"{library} was not built: {reason}"


def describe() -> str:
    """The libraries that were built and those that were not, in one line each."""
    try:
        facts = build_facts()
    except RuntimeError as error:
        return str(error)
    lines = [f"CPU kernels: {facts.compiler}, {facts.cpu_capability} of {', '.join(facts.cpu_capabilities)}"]
    if facts.nvcc_version is None:
        lines.append(f"CUDA library: {missing_reason('_C_cuda')}")
    else:
        lines.append(f"CUDA library: nvcc {facts.nvcc_version}, {', '.join(facts.cuda_architectures)}")
    problem = autograd_problem()
    lines.append("backward: called in C++" if problem is None else f"backward: called in Python: {problem}")
    return "\n".join([*lines, f"built with torch {facts.torch_version}, running on {torch.__version__}"])
