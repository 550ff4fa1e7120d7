"""Other processes: a fresh Python, where what is decided at import or by the environment shows; and several at once."""

import multiprocessing
import os
import subprocess
import sys
from multiprocessing import forkserver as server
from multiprocessing.context import ForkServerContext
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


def forkserver() -> ForkServerContext:
    """Starts processes from one that has imported, once for all tests, what takes seconds to import.

    That one begins in the root folder: it looks for modules where it begins, and a checkout has this package's sources
    without what was compiled from them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["effnet.cli.train", "effnet.training", "sklearn.model_selection", "torch.distributed.fsdp"]
    )
    folder = Path.cwd()
    os.chdir("/")
    try:
        server.ensure_running()
    finally:
        os.chdir(folder)
    return context
