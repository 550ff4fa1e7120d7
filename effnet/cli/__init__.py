"""The command ``effnet``."""

import sys


def main() -> None:
    """Run the command line; where its libraries are missing, say how to install them."""
    try:
        from effnet.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("effnet"):
            raise
        sys.exit(f"effnet: {error.name} is not installed; the commands need: pip install 'effnet-kernels[train]'")
    app()
