"""Compiles the CUDA kernels for one architecture and reads what came out: resources per kernel, and its instructions.

Results are kept in ``EFFNET_RESOURCES_CACHE`` (by default a folder in the system's temporary one), by a hash of each
source, the headers it includes, the flags and nvcc's version, so that nothing is compiled twice.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
FLAGS = ("-std=c++20", "-O3", "-DNDEBUG", "-I", str(CSRC))

_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_SECTION = re.compile(r"^\s*\.section\s+\.text\.(\w+)")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")


class ToolkitError(Exception):
    """The CUDA toolkit is missing or could not do what was asked of it; the message says what."""


@dataclass(frozen=True)
class Compiled:
    """One kernel, as ptxas reports it: bytes of a thread but for ``shared``, and how often each instruction occurs."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int
    instructions: dict[str, int]

    def count(self, pattern: str) -> int:
        """Instructions whose full name matches ``pattern``."""
        return sum(count for name, count in self.instructions.items() if re.fullmatch(pattern, name))


@dataclass(frozen=True)
class Toolkit:
    nvcc: Path
    version: str
    disassembler: Path

    def run(self, *arguments: str | Path, text: str | None = None) -> str:
        return run([self.nvcc, *arguments], text)

    def architectures(self) -> list[int]:
        """Virtual architectures that nvcc compiles for."""
        return [int(number) for number in re.findall(r"compute_(\d+)\b", self.run("--list-gpu-arch"))]


def run(command: Sequence[str | Path], text: str | None = None) -> str:
    """What the command prints; ToolkitError with it where the command fails."""
    result = subprocess.run(
        [str(part) for part in command],
        input=text,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if result.returncode != 0:
        raise ToolkitError(f"{Path(command[0]).name} failed ({result.returncode}):\n{result.stdout.strip()}")
    return result.stdout


@cache
def find_toolkit() -> Toolkit:
    """The toolkit that setup.py builds the CUDA library with; ToolkitError with the reason where there is none."""
    found = load_setup().inspect_toolchain(os.environ)
    if found.cuda_home is None or found.nvcc_version is None:
        raise ToolkitError(found.nvcc_problem or "the version of nvcc is unknown")
    # A toolkit may come without its disassembler; Triton's wheel, which torch's CUDA builds bring, has one.
    candidates = [found.cuda_home / "bin/nvdisasm"]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        candidates.append(Path(triton.origin).parent / "backends/nvidia/bin/nvdisasm")
    disassembler = next((path for path in candidates if path.exists()), None)
    if disassembler is None:
        raise ToolkitError(f"there is no nvdisasm: {' nor '.join(map(str, candidates))}")
    return Toolkit(found.cuda_home / "bin/nvcc", found.nvcc_version, disassembler)


@cache
def load_setup() -> ModuleType:
    """setup.py, which knows how nvcc is found and what it compiles for."""
    spec = importlib.util.spec_from_file_location("effnet_kernels_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def sources() -> list[Path]:
    return sorted(CSRC.glob("**/*.cu"))


def compile_kernels(toolkit: Toolkit, architecture: int, files: Sequence[Path] | None = None) -> dict[str, Compiled]:
    """Every kernel in ``files`` (by default in csrc/), by its mangled name, for sm_``architecture``."""
    # One compiler at a time on a machine that is somebody's; all of a machine that does nothing else.
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1) if os.environ.get("CI") == "true" else 1
    with ThreadPoolExecutor(jobs) as pool:
        parts = pool.map(lambda file: _compile(toolkit, architecture, file), files or sources())
        return {name: kernel for part in parts for name, kernel in part.items()}


def _compile(toolkit: Toolkit, architecture: int, source: Path) -> dict[str, Compiled]:
    command = (*FLAGS, f"-arch=sm_{architecture}", "-Xptxas=-v", "-cubin")
    kept = cached(toolkit, source, command).with_suffix(".json")
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            cubin = Path(folder, "kernels.cubin")
            usage = toolkit.run(*command, "-o", cubin, source)
            code = run([toolkit.disassembler, cubin])
            parsed = parse(usage, code)
            finished = Path(folder, "kernels.json")
            finished.write_text(json.dumps({name: asdict(kernel) for name, kernel in parsed.items()}))
            finished.replace(kept)
    return {name: Compiled(**fields) for name, fields in json.loads(kept.read_text()).items()}


def cached(toolkit: Toolkit, source: Path, command: Sequence[str]) -> Path:
    """Where what ``command`` makes of ``source`` is kept; another path for anything that could change it."""
    folder = Path(os.environ.get("EFFNET_RESOURCES_CACHE") or Path(tempfile.gettempdir(), "effnet-resources"))
    folder.mkdir(parents=True, exist_ok=True)
    # This file, too: it decides what is kept.
    state = hashlib.sha256(json.dumps([toolkit.run("--version"), *map(str, command)]).encode())
    for file in (Path(__file__), *included(source)):
        state.update(file.read_bytes() + b"\0")
    return folder / f"{source.parent.name}-{source.stem}-{state.hexdigest()[:20]}"


def included(source: Path) -> list[Path]:
    """The file and all of this repository's that it includes, in their order."""
    found: dict[Path, None] = {}

    def visit(file: Path) -> None:
        if file in found:
            return
        found[file] = None
        for name in _INCLUDE.findall(file.read_text()):
            if (CSRC / name).exists():
                visit(CSRC / name)

    visit(source)
    return list(found)


def parse(usage: str, code: str) -> dict[str, Compiled]:
    """From ptxas's report and the disassembly of the same code."""
    instructions: dict[str, Counter[str]] = {}
    current: Counter[str] = Counter()
    for line in code.splitlines():
        if section := _SECTION.match(line):
            current = instructions.setdefault(section.group(1), Counter())
        elif instruction := _INSTRUCTION.match(line):
            current[instruction.group(1)] += 1
    kernels = {}
    entries = _ENTRY.split(usage)[1:]
    for name, text in zip(entries[::2], entries[1::2], strict=True):
        frame, registers, shared = _FRAME.search(text), _REGISTERS.search(text), _SHARED.search(text)
        if frame is None or registers is None or not instructions.get(name):
            raise ToolkitError(f"cannot read the resources or the instructions of {name}:\n{text}")
        kernels[name] = Compiled(
            int(registers.group(1)),
            *map(int, frame.groups()),
            shared=int(shared.group(1)) if shared else 0,
            instructions=dict(instructions[name]),
        )
    return kernels


def build_program(toolkit: Toolkit, source: Path, *options: str) -> Path:
    """An executable of ``source`` for this machine."""
    # Device code is not run, so it stays PTX, which is the quickest to make.
    newest = f"compute_{toolkit.architectures()[-1]}"
    command = (*FLAGS, f"-gencode=arch={newest},code={newest}", *options)
    program = cached(toolkit, source, command)
    if not program.exists():
        with tempfile.TemporaryDirectory(dir=program.parent) as folder:
            finished = Path(folder, program.name)
            toolkit.run(*command, "-o", finished, source)
            shutil.move(finished, program)
    return program
