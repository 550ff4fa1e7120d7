import os
import shutil

import pytest

from resources.toolkit import Toolkit, ToolkitError, find_toolkit


@pytest.fixture(scope="session")
def toolkit() -> Toolkit:
    """CUDA's compiler and disassembler; tests skip without, and in CI they fail where there is an nvcc."""
    try:
        return find_toolkit()
    except ToolkitError as error:
        if os.environ.get("CI") == "true" and shutil.which("nvcc"):
            pytest.fail(str(error))
        pytest.skip(str(error))
