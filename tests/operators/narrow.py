"""Leaves float64 out of tests that are shared with kernels that do not compute in it."""

from pathlib import Path
from typing import Any

import pytest
import torch


def in_float64(value: Any) -> bool:
    """Whether a parameter of a test, or a row of them, asks for float64."""
    return value is torch.float64 or (isinstance(value, dict) and torch.float64 in value.values())


def leave_out_float64(folder: Path, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect every test under ``folder`` that has float64 among its parameters."""

    def refused(item: pytest.Item) -> bool:
        if folder not in item.path.parents or not isinstance(item, pytest.Function):
            return False
        callspec = getattr(item, "callspec", None)
        return callspec is not None and any(in_float64(value) for value in callspec.params.values())

    left_out = [item for item in items if refused(item)]
    items[:] = [item for item in items if not refused(item)]
    config.hook.pytest_deselected(items=left_out)
