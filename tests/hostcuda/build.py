"""Builds CUDA kernel sources together with the host runtime into a Python module that runs them on the CPU."""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parent
RUNTIME = sorted((FOLDER / "runtime").glob("*.cpp"))

FLAGS = (
    "-std=c++20",
    # nvcc includes it in front of every source, too.
    "-include",
    "cuda_runtime.h",
    "-DEFFNET_HOSTCUDA",
    # Kernels look at the same shared memory as several types.
    "-fno-strict-aliasing",
    # Two modules in one process each have a runtime of their own, and none of the toolkit's.
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-fno-gnu-unique",
    # GCC lets the assembler warn of the section that static shared variables are put into.
    "-Wa,--no-warn",
    # Of `#pragma unroll`, which changes no result.
    "-Wno-unknown-pragmas",
)
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def cuda_include() -> tuple[Path | None, str | None]:
    """The folder of CUDA's headers, or the reason there is none: CUDA_HOME's, nvcc's, or those that torch came with."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home, "include")] if home else [*_nvcc_include(), *_packaged_include()]
    for candidate in candidates:
        if (candidate / "cuda_fp16.h").exists():
            return candidate, None
    if home:
        return None, f"there is no include/cuda_fp16.h in CUDA_HOME={home}"
    return None, "no CUDA headers: CUDA_HOME is not set, there is no nvcc on PATH, and torch did not bring them"


def _nvcc_include() -> Iterator[Path]:
    """nvcc may be a wrapper from anywhere, so the folder is taken from what it calls its top."""
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.touch()
        result = subprocess.run([nvcc, "--dryrun", source], text=True, capture_output=True)
    top = re.search(r"^#\$ _?TOP=(.+)$", result.stdout + result.stderr, re.MULTILINE)
    if top is not None:
        yield Path(top.group(1).strip()).resolve() / "include"


def _packaged_include() -> Iterator[Path]:
    found = importlib.util.find_spec("nvidia")
    for location in (found and found.submodule_search_locations) or ():
        yield from sorted(Path(location).glob("cu[0-9]*/include"))
        yield Path(location, "cuda_runtime", "include")


def why_not() -> str | None:
    """The reason for which nothing can be built here, or None where it can."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"no C++ compiler: {compiler} was not found on PATH"
    if _ninja_folder() is None:
        return "ninja was not found"
    python = Path(sysconfig.get_path("include"))
    if not (python / "Python.h").exists():
        return f"there is no Python.h in {python} (Debian: python3-dev)"
    return cuda_include()[1]


def sanitizers_loaded() -> bool:
    """Whether AddressSanitizer's runtime is preloaded, without which no sanitized module can be imported."""
    return "libasan" in Path("/proc/self/maps").read_text()


def build(
    name: str,
    sources: Sequence[Path],
    *,
    include_dirs: Sequence[Path] = (),
    flags: Sequence[str] = (),
    sanitize: bool = False,
) -> ModuleType:
    """Compile ``sources`` (.cpp or .cu) and the runtime into the module ``name``, and import it.

    The build is kept in EFFNET_HOSTCUDA_BUILD, or where torch keeps extensions; later calls build what has changed.
    With ``sanitize`` AddressSanitizer and UndefinedBehaviorSanitizer watch, and the process must have preloaded them.
    """
    from torch.utils import cpp_extension

    toolkit, reason = cuda_include()
    if toolkit is None:
        raise RuntimeError(reason)
    if sanitize and not sanitizers_loaded():
        raise RuntimeError("a sanitized module needs LD_PRELOAD with libasan.so, and after it libstdc++.so.6")
    optimisation = ("-O1", "-g", "-fno-omit-frame-pointer", *SANITIZERS) if sanitize else ("-O2",)
    cflags = [*FLAGS, *optimisation, "-isystem", str(toolkit), *flags]
    ldflags = [f"-Wl,-T,{FOLDER / 'runtime/shared_memory.ld'}", *(SANITIZERS if sanitize else ())]
    with _build_folder(name, cflags) as folder, _ninja_on_path():
        module: ModuleType = cpp_extension.load(
            name=name,
            sources=[str(path) for path in _aliased([*sources, *RUNTIME], folder)],
            extra_cflags=cflags,
            extra_ldflags=ldflags,
            extra_include_paths=[str(path) for path in (FOLDER / "include", *include_dirs)],
            build_directory=str(folder),
            with_cuda=False,
        )
        return module


@contextlib.contextmanager
def _build_folder(name: str, flags: Sequence[str]) -> Iterator[Path]:
    """A folder for this checkout and these flags, held against other processes.

    torch's own lock is a file that outlives a process that was killed, and would be waited for without end.
    """
    from torch.utils import cpp_extension

    root = Path(os.environ.get("EFFNET_HOSTCUDA_BUILD") or cpp_extension.get_default_build_root())
    key = json.dumps([str(FOLDER), sys.version, *flags])
    folder = root / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "held", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        yield folder


def _aliased(sources: Sequence[Path], folder: Path) -> list[Path]:
    """The sources, some behind files that include them: objects are named by their sources, and .cu calls for nvcc."""
    times = Counter(path.stem for path in sources)
    compiled = []
    for path in sources:
        if times[path.stem] > 1 or path.suffix == ".cu":
            alias = folder / f"{path.resolve().parent.name}_{path.stem}.cpp"
            text = f'#include "{path.resolve()}"\n'
            if not alias.exists() or alias.read_text() != text:
                alias.write_text(text)
            compiled.append(alias)
        else:
            compiled.append(path)
    return compiled


def _ninja_folder() -> Path | None:
    """Where ninja is: on PATH, or beside a Python that was called without its environment being activated."""
    found = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    return Path(found).parent if found else None


@contextlib.contextmanager
def _ninja_on_path() -> Iterator[None]:
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{before}{os.pathsep}{_ninja_folder()}"
    yield
    os.environ["PATH"] = before
