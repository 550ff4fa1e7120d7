"""Backward operators are called in C++ or in Python, and nobody can tell by the gradients which it was."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from effnet_kernels.backend import autograd_library_reason
from effnet_kernels.build import build_facts, describe
from operators.backward_run import gradients

TESTS = Path(__file__).parents[1]

# The library serves no torch of this version, so Python does.
ANOTHER_TORCH = """
import runpy, torch
torch.__version__ = "0.0"
runpy.run_module("operators.backward_run", run_name="__main__")
"""


def test_python_gives_the_same_gradients(tmp_path: Path) -> None:
    if autograd_library_reason() is not None:
        pytest.skip(f"Python is all there is here: {autograd_library_reason()}")
    file = tmp_path / "gradients.pt"
    folders = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    result = subprocess.run(
        [sys.executable, "-c", ANOTHER_TORCH, str(file)],
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": folders},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"_autograd was built with torch {build_facts().torch_version}, this is 0.0\n"
    expected, found = torch.load(file), gradients()
    assert len(found) > 1000
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]), name
        assert gradient.stride() == expected[name].stride(), name


def test_what_describes_the_build_says_who_calls_them() -> None:
    reason = autograd_library_reason()
    assert ("backward: called in C++" if reason is None else f"backward: called in Python: {reason}") in describe()
