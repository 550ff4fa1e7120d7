"""The extension modules; everything else about the package is in pyproject.toml.

Five libraries go into ``effnet_kernels``: ``_C`` (schemas and CPU kernels), ``_C_cuda`` (CUDA kernels), ``_autograd``
(the operators' backward, for this very torch), ``_plan`` (build facts) and ``_watch`` (whether prepared weights are
current). Which of them are built is decided by :func:`decide` from what is installed here, never from the GPU that
happens to be visible. Environment variables:
``EFFNET_KERNELS_CUDA`` (0 or 1: without, or not without, ``_C_cuda``), ``TORCH_CUDA_ARCH_LIST``, ``MAX_JOBS``, ``CXX``,
``CFLAGS`` (a level of optimisation there replaces -O3), ``CUDA_HOME``.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = "effnet_kernels"
LIBRARIES = ("_C", "_C_cuda", "_autograd", "_plan", "_watch")
AUTOGRAD = "csrc/autograd.cpp"
PLAN = "csrc/plan.cpp"
WATCH = "csrc/watch.cpp"
REPORT = "_build.json"

# The oldest torch whose stable ABI the libraries use: 2.10.
TORCH_TARGET_VERSION = "0x020a000000000000"
# One architecture per family: code for sm_80 also runs on sm_87, for sm_100 on sm_103, for sm_120 on sm_121.
CUDA_ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)


class BuildError(SystemExit):
    """The build cannot do what was asked of it; the message says what is missing."""

    def __init__(self, message: str) -> None:
        super().__init__(f"effnet-kernels: {message}")


@dataclass(frozen=True)
class Toolchain:
    """What the decision depends on; a ``*_problem`` is None where there is none."""

    compiler: str
    compiler_problem: str | None
    python_headers_problem: str | None
    torch_version: str
    torch_cuda: str | None
    cuda_home: Path | None
    nvcc_problem: str | None
    nvcc_version: str | None = None


def decide(environ: Mapping[str, str], toolchain: Toolchain) -> dict[str, str | None]:
    """Every library, mapped to the reason it is not built, or to None where it is."""
    forced = environ.get("EFFNET_KERNELS_CUDA", "")
    if forced not in ("", "0", "1"):
        raise BuildError(f"EFFNET_KERNELS_CUDA: expected 0 or 1, got {forced!r}")
    cuda = "EFFNET_KERNELS_CUDA=0" if forced == "0" else _cuda_problem(toolchain)
    python_module = toolchain.compiler_problem or toolchain.python_headers_problem
    if forced == "1" and cuda is not None:
        raise BuildError(f"EFFNET_KERNELS_CUDA=1, but the CUDA library cannot be built: {cuda}")
    return {
        "_C": toolchain.compiler_problem,
        "_C_cuda": cuda,
        "_autograd": toolchain.compiler_problem,
        "_plan": python_module,
        "_watch": python_module,
    }


def _cuda_problem(toolchain: Toolchain) -> str | None:
    if toolchain.compiler_problem is not None:
        return toolchain.compiler_problem
    if toolchain.torch_cuda is None:
        return f"torch {toolchain.torch_version} is not a CUDA build"
    if toolchain.nvcc_problem is not None or toolchain.nvcc_version is None:
        return toolchain.nvcc_problem or "the version of nvcc is unknown"
    if toolchain.nvcc_version.split(".")[0] != toolchain.torch_cuda.split(".")[0]:
        return f"nvcc is of CUDA {toolchain.nvcc_version}, torch {toolchain.torch_version} of {toolchain.torch_cuda}"
    return None


def architecture_flags(environ: Mapping[str, str], supported: Sequence[int]) -> list[str]:
    """nvcc's ``-gencode`` flags; none where TORCH_CUDA_ARCH_LIST is set, since torch then adds its own."""
    if environ.get("TORCH_CUDA_ARCH_LIST"):
        return []
    chosen = [architecture for architecture in CUDA_ARCHITECTURES if architecture in supported]
    if not chosen:
        raise BuildError(f"nvcc knows none of the architectures {', '.join(map(str, CUDA_ARCHITECTURES))}")
    newest = chosen[-1]
    binary = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in chosen]
    return [*binary, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def inspect_toolchain(environ: Mapping[str, str]) -> Toolchain:
    try:
        import torch
    except ImportError as error:
        raise BuildError(f"torch is needed to build (pip's isolated build brings it by itself): {error}") from error
    compiler = environ.get("CXX", "c++")
    cuda_home, nvcc_problem = _find_cuda_home(environ)
    return Toolchain(
        compiler=compiler,
        compiler_problem=_compiler_problem(compiler),
        python_headers_problem=_python_headers_problem(),
        torch_version=torch.__version__,
        torch_cuda=torch.version.cuda,
        cuda_home=cuda_home,
        nvcc_problem=nvcc_problem,
        nvcc_version=None if cuda_home is None else _nvcc_version(cuda_home),
    )


def _run(*command: str | Path) -> str:
    """The command's output and messages together; OSError or CalledProcessError where it fails."""
    result = subprocess.run(
        [str(part) for part in command], check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return result.stdout


def _compiler_problem(compiler: str) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <concepts>\nstatic_assert(std::integral<int>);\n")
        try:
            _run(*compiler.split(), "-std=c++20", "-shared", "-fPIC", source, "-o", source.with_suffix(".so"))
        except OSError as error:
            return f"no C++ compiler: {compiler}: {error.strerror}"
        except subprocess.CalledProcessError as error:
            return f"{compiler} cannot build a C++20 library: {error.output.strip()}"
    return None


def _python_headers_problem() -> str | None:
    folder = sysconfig.get_path("include")
    return None if Path(folder, "Python.h").exists() else f"there is no Python.h in {folder} (Debian: python3-dev)"


def _find_cuda_home(environ: Mapping[str, str]) -> tuple[Path | None, str | None]:
    """The CUDA toolkit's folder, or the reason there is none.

    nvcc on PATH may be a wrapper or a link from anywhere, so the folder is taken from what nvcc itself calls its top.
    """
    given = environ.get("CUDA_HOME") or environ.get("CUDA_PATH")
    if given:
        home = Path(given)
        return (home, None) if (home / "bin/nvcc").exists() else (None, f"there is no bin/nvcc in CUDA_HOME={given}")
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        return None, "nvcc was not found on PATH, and CUDA_HOME is not set"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.touch()
        try:
            output = _run(nvcc, "--dryrun", source)
        except (OSError, subprocess.CalledProcessError) as error:
            return None, f"{nvcc} --dryrun failed: {error}"
    top = re.search(r"^#\$ _?TOP=(.+)$", output, re.MULTILINE)
    if top is None:
        return None, f"{nvcc} --dryrun does not say where the toolkit is"
    home = Path(top.group(1).strip()).resolve()
    return (home, None) if (home / "bin/nvcc").exists() else (None, f"there is no bin/nvcc in {home}")


def _nvcc_version(cuda_home: Path) -> str | None:
    found = re.search(r"release (\d+\.\d+)", _run(cuda_home / "bin/nvcc", "--version"))
    return found.group(1) if found else None


def _nvcc_architectures(cuda_home: Path) -> list[int]:
    return [int(number) for number in re.findall(r"sm_(\d+)\b", _run(cuda_home / "bin/nvcc", "--list-gpu-code"))]


def _sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(f"csrc/{pattern}"))


def cpu_sources() -> list[str]:
    """The sources of ``_C``: schemas and CPU kernels."""
    return sorted({*_sources("**/*.cpp")} - {*cuda_sources(), AUTOGRAD, PLAN, WATCH})


def cuda_sources() -> list[str]:
    """The sources of ``_C_cuda``: kernels and their launches for nvcc, and what calls them for the C++ compiler."""
    return _sources("**/*.cu", "*/cuda*.cpp")


def _macro(name: str, text: str) -> tuple[str, str]:
    return f"EFFNET_KERNELS_{name}", json.dumps(text)


def extension_modules(reasons: Mapping[str, str | None], toolchain: Toolchain) -> list[Extension]:
    if reasons["_C"] is not None:
        return []
    if toolchain.cuda_home is not None:
        os.environ["CUDA_HOME"] = str(toolchain.cuda_home)  # cpp_extension takes it when it is imported
    import pybind11
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    # A POSIX errno and trapping floating-point exceptions would keep the compiler from vectorising; no result changes.
    optimised = ["-fno-math-errno", "-fno-trapping-math"]
    if "-O" not in os.environ.get("CFLAGS", ""):
        optimised.append("-O3")
    common: dict[str, Any] = {
        "include_dirs": [str(ROOT / "csrc")],
        "define_macros": [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)],
        "py_limited_api": True,
    }
    # GCC 12 warns of its own AVX-512 headers, whose "undefined" vectors are meant to be.
    quiet = ["-Wno-maybe-uninitialized"]
    cxx = ["-std=c++20", "-g0", "-fvisibility=hidden", *optimised, *quiet]
    modules = [CppExtension(f"{PACKAGE}._C", cpu_sources(), extra_compile_args=cxx, **common)]
    architectures: list[str] = []
    if reasons["_C_cuda"] is None:
        assert toolchain.cuda_home is not None
        architectures = architecture_flags(os.environ, _nvcc_architectures(toolchain.cuda_home))
        nvcc = ["-std=c++20", "-O3", "-Xcompiler=-fvisibility=hidden", *architectures]
        modules.append(
            CUDAExtension(
                f"{PACKAGE}._C_cuda",
                cuda_sources(),
                extra_compile_args={"cxx": cxx, "nvcc": nvcc},
                **{
                    **common,
                    "include_dirs": [str(ROOT / "csrc")],
                    # Without it torch's headers hide their function for the current stream.
                    "define_macros": [*common["define_macros"], ("USE_CUDA", None)],
                },
            )
        )
    if reasons["_autograd"] is None:
        # Not of the stable ABI, which has no autograd, but loaded like a library of it.
        modules.append(CppExtension(f"{PACKAGE}._autograd", [AUTOGRAD], extra_compile_args=cxx, py_limited_api=True))
    if reasons["_plan"] is None:
        codes = [flag.rpartition("code=")[2] for flag in architectures]
        asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";").split(";")
        built_cuda = reasons["_C_cuda"] is None
        facts = {
            "VERSION": _package_version(),
            "TORCH_VERSION": toolchain.torch_version,
            "TORCH_CUDA_VERSION": toolchain.torch_cuda or "",
            "NVCC_VERSION": (toolchain.nvcc_version or "") if built_cuda else "",
            "CUDA_ARCHITECTURES": ";".join(codes or asked) if built_cuda else "",
        }
        modules.append(
            Extension(
                f"{PACKAGE}._plan",
                [PLAN],
                include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
                define_macros=[_macro(name, text) for name, text in facts.items()],
                extra_compile_args=cxx,
                language="c++",
            )
        )
    if reasons["_watch"] is None:
        modules.append(
            Extension(
                f"{PACKAGE}._watch",
                [WATCH],
                include_dirs=[pybind11.get_include()],
                extra_compile_args=cxx,
                language="c++",
            )
        )
    return modules


def _package_version() -> str:
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    return found.group(1)


def report(reasons: Mapping[str, str | None]) -> str:
    """What is built and what is not, for the person who reads the build's output."""
    lines = ["effnet-kernels: libraries of this build"]
    lines += [f"  {name}: {'built' if reason is None else f'NOT built: {reason}'}" for name, reason in reasons.items()]
    if reasons["_C"] is not None:
        lines.append(
            "  Only the plain-PyTorch reference backend will work: install a C++20 compiler and install again."
        )
    return "\n".join(lines)


class BuildPy(build_py):
    """Leaves beside the package's modules why a library was not built, and no library of an earlier build."""

    reasons: Mapping[str, str | None] = {}

    def run(self) -> None:
        print(report(self.reasons), file=sys.stderr, flush=True)
        super().run()
        folder = ROOT / PACKAGE if self.editable_mode else Path(self.build_lib, PACKAGE)
        (folder / REPORT).write_text(json.dumps(dict(self.reasons), indent=2) + "\n")
        for name in (name for name, reason in self.reasons.items() if reason is not None):
            for stale in folder.glob(f"{name}.*so"):
                stale.unlink()


def main() -> None:
    toolchain = inspect_toolchain(os.environ)
    reasons = decide(os.environ, toolchain)
    BuildPy.reasons = reasons
    modules = extension_modules(reasons, toolchain)
    commands: dict[str, Any] = {"build_py": BuildPy}
    if modules:
        from torch.utils.cpp_extension import BuildExtension

        commands["build_ext"] = BuildExtension
    setup(ext_modules=modules, cmdclass=commands)


if __name__ == "__main__":
    main()
