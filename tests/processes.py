"""A fresh Python: what is decided at import, or by the environment, shows only there."""

import os
import subprocess
import sys
from pathlib import Path


def run_python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in ``folder``, with ``environment`` added and nothing of this package inherited."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EFFNET_KERNELS_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
