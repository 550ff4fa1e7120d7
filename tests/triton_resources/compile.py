"""Compiles the Triton kernels that B0 launches for one architecture and dtype, without a GPU, and reads what came out.

With TRITON_INTERPRET unset, for interpreted kernels are not compiled::

    PYTHONPATH=tests python -m triton_resources.compile FILE ARCHITECTURE DTYPE   # triton_resources/toolkit.py calls it

What was compiled is kept beside FILE by kernel, so that after a change only the kernels it changes are compiled.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction

from effnet_kernels.activations import CODES
from effnet_kernels.triton import tile
from triton_resources import ptx
from triton_resources.launches import Specialisation, b0_launches
from triton_resources.toolkit import Compiled, Kernel

_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)")
_ASKED = re.compile(r"\b(\w+) is (?:not )?None\b")
_LAYOUTS = {
    tile.CHANNELS_LAST.value: "channels_last",
    tile.CHANNELS_LAST_BY_8.value: "channels_last_by_8",
    tile.NCHW.value: "nchw",
    tile.NCHW_UNALIGNED.value: "nchw_unaligned",
}


def kernel_of(found: Specialisation) -> Kernel:
    """What the resource table calls it: without what Triton finds out about its integers."""
    constants = {
        name: found.bound[name] for name, (kind, _) in zip(found.bound, found.types, strict=True) if kind == "constexpr"
    }
    blocks = [str(value) for name, value in constants.items() if name.startswith("BLOCK_")]
    words, layout = [], ""
    for name, value in constants.items():
        if name == "LAYOUT":
            layout = _LAYOUTS[value]
        elif name == "CHANNELS_LAST":
            layout = "channels_last" if value else "nchw"
        elif name in ("ACTIVATION", "GATE"):
            words.append(list(CODES)[value])
        elif name.isupper() and name not in ("KERNEL", "STRIDE") and not name.startswith("BLOCK_"):
            words += [f"{name.lower()}={value}"] if value is not False else []
    # A tensor that the kernel's code asks for is one that a launch may leave out.
    asked = set(_ASKED.findall(found.kernel.src))
    words += [name for name, value in found.bound.items() if name in asked and value is not None]
    return Kernel(
        found.kernel.__name__,
        str(found.dtype or "").removeprefix("torch."),
        layout,
        str(constants.get("KERNEL", "")),
        str(constants.get("STRIDE", "")),
        " ".join([*words, "x".join(blocks)]),
    )


def compile_one(found: Specialisation, target: GPUTarget, folder: Path) -> dict[str, Any]:
    """The resources and accesses of a kernel, from ``folder`` where they are known."""
    backend = make_backend(target)
    packed = found.kernel._pack_args(backend, dict(found.options), found.bound, found.types, found.options)
    options, signature, constants, attributes = packed
    source = ASTSource(found.kernel, signature, constants, attributes)
    # These files, too: they decide what is kept.
    state = [triton.__version__, str(target), source.hash(), options.hash(), *_contents(__file__, ptx.__file__)]
    kept = folder / f"kernel-{hashlib.sha256(json.dumps(state).encode()).hexdigest()[:20]}.json"
    if not kept.exists():
        result = triton.compile(source, target=target, options=options.__dict__)
        pointers = [name for name, kind in signature.items() if kind != "constexpr"]
        registers, stack, local = _resources(result.asm["cubin"])
        facts = {
            "registers": registers,
            "shared": result.metadata.shared,
            "warps": result.metadata.num_warps,
            "stack": stack,
            "local": local,
            **asdict(ptx.accesses(result.asm["ptx"], pointers)),
        }
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
            file.write(json.dumps(facts))
        Path(file.name).replace(kept)
    return json.loads(kept.read_text())


def _contents(*paths: str) -> list[str]:
    return [Path(path).read_text() for path in paths]


def _resources(cubin: bytes) -> tuple[int, ...]:
    """Registers, and the bytes of stack and of local memory of a thread.

    Spilled registers lie on the stack: where there is none, there are no loads and stores of local memory.
    """
    disassembler = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [disassembler, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = _RESOURCES.search(usage)
    if found is None:
        raise ValueError(f"cannot read the resources:\n{usage}")
    return tuple(map(int, found.groups()))


def forget_lines() -> None:
    """A kernel's place in its file is part of its hash: a line that came or went would compile all kernels below it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("effnet_kernels.triton."):
            for value in vars(module).values():
                if isinstance(value, JITFunction):
                    value.starting_line_number = 0


def main() -> None:
    assert not triton.knobs.runtime.interpret, "TRITON_INTERPRET is set"
    output, architecture, dtype = sys.argv[1:]
    target = GPUTarget("cuda", int(architecture), 32)
    forget_lines()
    folder = Path(output).parent
    kernels = []
    # Triton keeps a megabyte for every kernel, and for ever.
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TRITON_CACHE_DIR"] = scratch
        for found in b0_launches(target.arch, getattr(torch, dtype)):
            shapes = sorted("×".join(map(str, shape)) for shape in found.shapes)
            facts = compile_one(found, target, folder)
            kernels.append(
                asdict(Compiled(kernel_of(found), str(found), shapes, list(found.activations), **facts)),
            )
    Path(output).write_text(json.dumps(kernels))


if __name__ == "__main__":
    main()
