"""Rows and machine as a JSON file."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from effnet.doctor.checks import Row
from effnet.doctor.machine import Machine
from effnet.errors import OptionError


def check_report_path(path: Path) -> None:
    """Refuse, before any work, a path that :func:`write_report` could not write.

    Raises:
        OptionError: there is no such folder, it cannot be written to, or ``path`` is a folder itself.
    """
    folder = path.parent
    if path.is_dir():
        raise OptionError("json", "a file", f"{path}: a folder")
    if not folder.is_dir():
        raise OptionError("json", "a file in a folder that exists", f"{folder}: no such folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OptionError("json", "a file in a folder that can be written to", folder)


def write_report(path: Path, machine: Machine, rows: Sequence[Row]) -> None:
    """Write ``machine`` and ``rows`` to ``path``, all at once: a reader finds the old file or the whole new one.

    Infinite errors are null, as JSON has no number for them; ``failure`` says what they were.
    """
    report = {"machine": asdict(machine), "rows": [{**_finite(asdict(row)), "ok": row.ok} for row in rows]}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
