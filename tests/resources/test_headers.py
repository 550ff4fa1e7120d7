"""Every operator's kernel.cuh compiles by itself, for everything that the library is built for, and knows no torch."""

from pathlib import Path

import pytest

from resources.toolkit import CSRC, FLAGS, Toolkit, load_setup

HEADERS = sorted(CSRC.glob("*/kernel.cuh"))


def name(header: Path) -> str:
    return header.parent.name


@pytest.mark.parametrize("header", HEADERS, ids=name)
def test_compiles_alone(header: Path, toolkit: Toolkit, tmp_path: Path) -> None:
    supported = toolkit.architectures()
    chosen = [number for number in load_setup().CUDA_ARCHITECTURES if number in supported]
    flags = [f"-gencode=arch=compute_{number},code=compute_{number}" for number in chosen]
    toolkit.run(*FLAGS, *flags, "-x", "cu", "-fatbin", "-o", tmp_path / "kernels.fatbin", header)


@pytest.mark.parametrize("header", HEADERS, ids=name)
def test_includes_no_torch(header: Path, toolkit: Toolkit) -> None:
    """torch's headers are not on the include path, so that the first of them would already be an error."""
    rule = toolkit.run(*FLAGS, "-M", "-x", "cu", header).replace("\\\n", " ")
    included = [Path(path) for path in rule.partition(":")[2].split()]
    assert CSRC / "common/cuda/vec.cuh" in included
    assert [path for path in included if {"torch", "ATen", "c10"} & set(path.parts)] == []
